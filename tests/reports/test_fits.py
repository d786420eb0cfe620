"""Fits, rankings and gains on the page: as the CSVs have them, with their reservations."""

import html
import re

import numpy as np
import pytest
from pages import copy_of, rendered, rewrite, section, table
from synthetic_laws import JOINT

from evals.laws.points import Points
from evals.records import schema
from reports import fits
from reports import page as parts

DRAWN = ("losses", "scaling", "ablations", "matched")


@pytest.fixture
def page(undrawn, results) -> str:
    return html.unescape(rendered(results, *DRAWN))


def test_a_law_stands_with_intervals_and_with_what_it_did_not_see(page):
    header, *rows = table(page, "Every law by the form that stands")
    joint = dict(zip(header, next(row for row in rows if row[:2] == ["joint", "MoE-8"]), strict=True))
    assert joint["form"] == "L = E + A (N/N₀)⁻ᵅ + B (D/D₀)⁻ᵝ"
    assert joint["parameters [95 % interval]"].startswith("E = 2 [1.8 … 2.2]; A = 1 [0.9 … 1.1]; α = 0.4 [0.36 … 0.44]")
    assert joint["starts that agree"] == "24 of 25"
    assert [joint[name] for name in ("left out", "predicted", "95 % interval", "measured")] == [
        "d256",
        "3.900",
        "3.800 … 4.000",
        "3.950",
    ]
    dense = next(row for row in rows if row[:2] == ["joint", "Dense"])
    assert dense[header.index("statement")].startswith("not a law: 3 sizes, a law needs 4")
    assert {row[2] for row in rows if row[0] == "table size"} == {"m/N fixed", "half as dense"}
    assert "a summary and not a law" in section(page, "scaling")


def test_residuals_of_the_joint_law_are_of_its_parameters(results):
    loaded = parts.Results(results)
    points = Points(loaded.runs, loaded["arms"], resamples=0)
    rows = loaded["fits"].query("fit == 'joint' and arch == 'moe8'")
    law = fits.Along(rows, ("N", "D"), None)
    run = points.runs.loc["moe8-d64-s0"]
    n, d = float(run["active_params"]), float(run["tokens"])
    known = 2.0 + (n / JOINT["N0"]) ** -0.4 + 1.2 * (d / JOINT["D0"]) ** -0.3
    assert law.at(np.array([[n, d]])) == pytest.approx([known])


def test_the_law_of_stored_parameters_is_drawn_as_fits_csv_has_it(page, results):
    drawn = [title for title in re.findall(r'aria-label="([^"]*)"', section(page, "scaling")) if "sparse" in title]
    assert [title.split(":")[0] for title in drawn] == [
        "Against sparse over activated parameters",
        "What it leaves",
        "Against sparse parameters",
        "What it leaves",
    ]
    rows = schema.read(results / "fits.csv", "fits").query("fit == 'table size' and series == 'm/N fixed' and stands")
    known = rows.set_index("parameter")["value"]
    law = fits.Along(rows, ("S",))
    assert law.predict([known["S0"]]) == pytest.approx([known["c"]])
    assert law.predict([10 * known["S0"]]) == pytest.approx([known["c"] - known["b"]])


def test_the_ranking_is_shown_by_every_rule(page, results):
    header, *rows = table(page, "Who is best, by every rule of counting")
    frame = schema.read(results / "ranking.csv", "ranking")
    assert [row[0] for row in rows] == ["loss alone", "router (the papers’)", *frame["rule"].drop_duplicates()[1:]]
    best = frame.query("rule == 'head' and size == 'd128'").sort_values("gap").iloc[0]
    cell = next(row for row in rows if row[0] == "head")[header.index("d128")]
    assert cell.split(", ")[0].split(" ")[1] == f"{best['gap']:+.3f}".replace("-", "−")
    header, *rows = table(page, "Where the FLOPs of a token go at d256")
    assert dict(zip(header, rows[0], strict=True))["head"] == dict(zip(header, rows[1], strict=True))["head"] != "0"


def test_gains_stand_as_compute_and_net_of_time(page):
    header, row = table(page, "What a lower loss is worth")
    shown = dict(zip(header, row, strict=True))
    assert (shown["architecture"], shown["dense’s compute"], shown["net"]) == ("UltraMem", "1.50", "0.90")
    header, row = table(page, "ultramem: what each arm is worth")
    shown = dict(zip(header, row, strict=True))
    assert (shown["step"], shown["dense’s compute"], shown["this step"]) == ("+rm softmax", "1.50*", "1.10")


def test_a_folder_without_a_law_has_its_sentences(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    rewrite(path / "equivalents.csv", "equivalents", lambda frame: frame[:0])
    rewrite(path / "ranking.csv", "ranking", lambda frame: frame[:0])
    page = html.unescape(rendered(path, *DRAWN))
    assert "equivalents.csv has no rows" in section(page, "losses")
    assert "ranking.csv has no rows" in section(page, "scaling")
