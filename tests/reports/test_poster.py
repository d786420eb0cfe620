"""summary.png: its size, its words and its colours, drawn from made-up tables."""

import struct
import textwrap

import pytest
from matplotlib.colors import to_hex
from synthetic import grid_run, write
from synthetic_decision import latency, losses

from reports import poster
from reports.answer import answer
from reports.page import Results
from reports.style import THEME


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    gaps, paces = {"moe8": -0.3, "ultramem": -0.1}, {"moe8": (3.0, 3.0, 1.0), "ultramem": 1.0}
    return Results(write(tmp_path_factory.mktemp("poster"), runs=losses(gaps), latency=latency(paces)))


def words(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_the_picture_holds_the_answer_and_the_chart_at_its_width(results, tmp_path):
    poster.main(["--results", str(results.folder), "--out", str(tmp_path / "made/summary.png")])
    data = (tmp_path / "made/summary.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == 1200
    assert 600 < height < 1600
    assert b"tIME" not in data
    assert b"tEXt" not in data.replace(b"tEXtSoftware", b"")


def test_every_sentence_stands_in_it_and_nothing_leaves_it(results):
    figure = poster.poster(results)
    shown = words(figure)
    for topic, sentence in answer(results):
        assert topic in shown
        assert "\n".join(textwrap.wrap(sentence, poster.LETTERS)) in shown
    assert "Best layer at equal decode time, as measured" in shown
    assert "Best layer at equal decode time, every layer at its roofline" in shown
    assert "UltraMem\nby 0." in shown
    assert "Test loss by size" in shown
    figure.canvas.draw()
    edge = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= edge.x1 and box.y0 >= 0 and box.y1 <= edge.y1, text.get_text()  # noqa: PT018


def test_no_colour_that_stands_for_another_is_left(results):
    colours = poster.palette()
    assert set(colours) == set(THEME)
    assert len(set(colours.values())) > 10
    figure, found = poster.poster(results), set()
    for artist in poster._artists(figure):
        for name in poster.PAINTED:
            value = getattr(artist, f"get_{name}", lambda: "none")()
            for one in [value] if poster.is_color_like(value) else value:
                found.add(to_hex(one))
    assert not found & set(THEME)
    assert {colours[one] for one in THEME if THEME[one] in ("ink", "ultramem", "moe8")} <= found


def test_what_was_not_measured_is_left_out_and_said(tmp_path):
    shown = words(poster.poster(Results(write(tmp_path, runs=[grid_run("dense")]))))
    assert "It takes a memory layer and a mixture of experts" in shown
    assert "Best layer at equal decode time" not in shown
