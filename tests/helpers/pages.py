"""Parts of a rendered page, copies of a results folder, and where the browser is."""

import html
import re
import shutil
from pathlib import Path

import pytest

from evals.records import schema
from reports import build

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


def rendered(folder: Path, *names: str, **given) -> str:
    """The page of these sections alone, each of which takes its time to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SECTIONS", tuple(section for section in build.SECTIONS if section[0] in names))
        return build.render(folder, **given)


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def table(page: str, words: str) -> list[list[str]]:
    """The cells, as text, of the only table whose caption holds `words`."""
    (figure,) = (part for part in re.findall(r'<figure class="tabled.*?</figure>', page, re.S) if words in html.unescape(part))
    rows = re.findall(r"<tr.*?</tr>", figure, re.S)
    return [
        [html.unescape(re.sub("<.*?>", "", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
        for row in rows
    ]


def copy_of(results: Path, path: Path) -> Path:
    return Path(shutil.copytree(results, path / "copy"))


def rewrite(path: Path, table: str, change) -> None:
    schema.write(path, table, change(schema.read(path, table)))
