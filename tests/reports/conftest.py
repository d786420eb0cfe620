"""The made-up results that the reports are drawn from, and pages without their pictures."""

import html
from pathlib import Path

import pytest
from synthetic_fair import folder

from reports import style


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("results") / "synthetic")


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures hold their axes' labels alone: laying one out and saving it is most of what a page costs."""
    monkeypatch.setattr(style, "svg", lambda name, alt, figure: f'<svg aria-label="{html.escape(alt)}"></svg>')
