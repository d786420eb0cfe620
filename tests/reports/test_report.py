"""The report: drawn from synthetic CSVs alone, self-contained, its numbers those of the CSVs."""

import html
import os
import re
import subprocess
import sys

import pytest
from pages import section, table
from repository import ROOT
from synthetic_fair import SHIFT
from synthetic_folder import ARCHS

from evals.records import schema
from reports import build, claims, evaluations, sections, speedups, style, timings
from reports import page as parts

SECTIONS = [name for name, _, _ in sections.SECTIONS]


@pytest.fixture(scope="module")
def page(results) -> str:
    return build.render(results)


def test_the_page_loads_nothing_and_is_light(page):
    loads = re.findall(r"""(?:\b(?:src|href|action|data)\s*=\s*["']|url\(["']?|@import\s+["']?)\s*([^"')\s]+)""", page)
    assert len(loads) > 100
    assert all(load.startswith(("#", "data:")) for load in loads), sorted(set(loads))
    assert "<link" not in page.replace('<link rel="icon" href="data:', "")
    assert len(page.encode()) < 5_000_000


def test_every_section_is_drawn_and_names_its_csv(page):
    for name in SECTIONS:
        missing = re.findall(r'<p class="missing">(.*?)</p>', section(page, name))
        known = {"summary": ["No decision chart from this "], "runs": ["Configs are not kept here: e"]}  # three sizes; no runs/
        assert [words[:28] for words in missing] == known.get(name, []), name
    for csv in set(schema.TABLES) - {"provenance", "same_source"}:  # of results/reference alone
        if csv.startswith("gpu_"):  # of `python -m evals.gpu`, whose times join the report as those of another machine
            continue
        assert f"{csv}.csv" in page
    for name in (
        "claims",
        "losses",
        "ablations",
        "evaluations",
        "latency",
        "access",
        "matched",
        "health",
        "tuning",
        "cost",
    ):
        assert "<table>" in section(page, name), name
    for name in (
        "summary",
        "losses",
        "scaling",
        "ablations",
        "evaluations",
        "latency",
        "access",
        "speed",
        "health",
        "tuning",
    ):
        assert "<svg" in section(page, name), name
    assert page.count("<figure") == page.count("<figcaption")


def test_devices_and_models_are_labelled_and_never_in_one_curve(page):
    drawn = re.findall(r'<figure class="picture">.*?</figure>', section(page, "latency"), re.S)
    kinds = []
    for figure in drawn:
        badges = re.findall(r'<span class="badge">(.*?)</span>', figure)
        kinds.append([badge for badge in badges if badge in ("measured", "modelled")])
        assert {"measured": "CPU", "modelled": "CUDA"}[kinds[-1][0]] in badges
        for title in re.findall(r'aria-label="[^"]*"', figure):
            assert ("measured" in title) != ("modelled" in title)
            assert ("A100" in title) + ("H100" in title) <= 1
    assert kinds == [["measured"]] * 3 + [["modelled"]] * 2
    assert re.search(r'aria-label="Decode step, size decode, whole model\s+measured, CPU', section(page, "summary"))


def test_speed_ups_stand_beside_what_a_perfect_moe_would_take(results, page):
    pairs = speedups.speedups(timings.timings(parts.Results(results)).query("variant == 'plain'"))
    measured = pairs[(pairs["kind"] == "measured") & (pairs["part"] == "model") & (pairs["dtype"] == "fp32")]
    slow = measured[(measured["arch_moe"] == "moe8") & (measured["batch"] == 16)]
    assert slow["value"].tolist() == pytest.approx((slow["p50_ms_moe"] / slow["p50_ms"]).tolist())
    assert slow["distance"].tolist() == pytest.approx([1.5])
    assert slow["conservative"].tolist() == pytest.approx((slow["value"] / 1.5).tolist())
    header, *rows = table(page, "Speed-up over MoE")
    row = dict(
        zip(header, next(row for row in rows if row[:5] == ["MoE-8", "UltraMemV2", "fp32", "whole model", "16"]), strict=True)
    )
    assert row["MoE / memory"] == f"{slow['value'].iloc[0]:.2f}"
    assert row["conservative"] == f"{slow['value'].iloc[0] / 1.5:.2f}"
    assert row["reading"] == "holds against a perfect MoE"
    assert {row[10] for row in rows} == {"holds against a perfect MoE", "memory is slower"}
    assert "withheld" not in page
    assert "MoE-2 over UltraMem" in section(page, "latency")
    assert pairs["value"].notna().all()


def test_tricks_and_predictions_are_ratios_to_the_plain_step(page):
    rows = table(page, "inference tricks")
    assert [(row[0], row[9]) for row in rows[1:]] == [("folded", "1.20"), ("overlap", "0.90")]
    rows = {tuple(row[:6]): row[6:-1] for row in table(page, "Measured over predicted")}
    assert rows["MoE-8", "decode", "11.1", "whole model", "fp32", "1"] == ["1.10", "1.10", "1.50", "1.10", "1.10", "10%"]


def test_bytes_are_counted_over_expected(page):
    rows = table(page, "Bytes counted over bytes expected")
    assert {cell for row in rows[1:] for cell in row[5:]} == {"0.900"}
    assert "published" in section(page, "access")


def test_published_scores_are_as_printed(page):
    header, *rows = table(page, "P2 table 3")
    assert dict(zip(header, next(row for row in rows if row[0].startswith("OLMoE-227M")), strict=True))["WinoGrande"] == "58.9"
    header, *rows = table(page, "P2 table 2")
    assert dict(zip(header, rows[0], strict=True))["find needle"] == "96.5"


def test_scores_stand_in_the_table_of_their_subject(page):
    subjects = ["arc_easy", "perplexity test/wiki", "phone_book/4", "phone_book", "bios", "corpus_facts", "lambada"]
    assert [evaluations.subject(task) for task in subjects] == [
        "open",
        "perplexity",
        "memory",
        "memory",
        "people",
        "corpus",
        "open",
    ]
    public, memory = table(page, "Public tasks"), table(page, "synthetic analogues; corpus_facts")
    assert {row[1] for row in public[1:]} == {"arc_easy", "piqa", "sciq", "lambada"}
    assert {row[1].partition("/")[0] for row in memory[1:]} == {"phone_book", "variable_tracking", "bios", "corpus_facts"}
    assert ["d256", "bios", "bits_per_parameter", "0", "500", "0.000", "0.000 ± 0.0001"] in [row[:7] for row in memory]
    assert ["d256", "test", "UltraMem"] in [row[:3] for row in table(page, "Bits per byte")]
    assert "phone_book (chance dotted)" in section(page, "evaluations")
    assert "perplexity" not in str(public)


def test_controls_stand_under_their_twins(page, results):
    rows = {row[0]: row[1:] for row in table(page, "Controls:")[1:]}
    names = {"memory frozen": "UltraMem", "random router": "MoE-8", "dense, 2x FLOPs": "Dense"}
    assert list(rows) == [row for control, twin in names.items() for row in (f"{twin}, as in the grid", control)]
    losses = {name: float(row[1]) for name, row in rows.items()}
    for control, twin in names.items():
        change = float(rows[control][2].replace("−", "-"))
        assert change == pytest.approx(losses[control] - losses[f"{twin}, as in the grid"], abs=2e-3)
    assert rows["memory frozen"][3:] == ["+2.0", "+3.0", "+3.0", "+1.0"]
    assert "controls" not in re.findall(r"<b>Table \d+\.</b> (\w+) \(", section(page, "ablations"))


def test_a_claim_leads_to_its_runs(page):
    row = section(page, "claims").split('<tr id="claim-C1">')[1].split("</tr>")[0]
    assert '<a href="#run-dense-d64-s0">dense-d64-s0</a>' in row
    assert "elsewhere" not in row


def test_peers_are_times_over_ours(page):
    rows = table(page, "Public implementations")
    assert {(row[1], row[9]) for row in rows[1:]} == {("ours", "1.00"), ("a peer", "2.50")}


def test_pictures_are_named_and_their_links_can_be_reached(page):
    pictures = re.findall(r'<svg role="(\w+)" aria-label="([^"]+)".*?>(.*?)</svg>', page, re.S)
    assert len(pictures) > 30
    assert all(role == ("group" if "<a " in drawn else "img") for role, _, drawn in pictures)


def test_chains_without_published_numbers_have_no_columns_for_them(page):
    assert table(page, "sparsity (sweep)")[0] == ["#", "step", "train loss", "test loss", "change", "95 % interval", "seeds"]
    assert "paper change" in table(page, "ultramem (cumulative)")[0]


def test_every_loss_leads_to_its_run(page, results):
    targets = re.findall(r'href="#([^"]+)"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids), sorted(set(targets) - set(ids))[:5]
    for row in schema.read(results / "runs.csv", "runs").itertuples():
        if row.run.endswith("-s0") and row.run.split("-")[0] in ARCHS:
            assert f'<a href="#{style.anchor(row.run)}"><b>{row.test_loss:.3f}</b>' in page or (
                f'<a href="#{style.anchor(row.run)}">{row.test_loss:.3f}' in page
            )
            assert f'<article id="{style.anchor(row.run)}"' in page


def test_every_cell_that_names_a_run_leads_to_it(page, results):
    names = set(schema.read(results / "runs.csv", "runs")["run"])
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    named = [cell for cell in cells if html.unescape(re.sub("<.*?>", "", cell)).strip() in names]
    assert len(named) > len(names)
    assert all('<a href="#run-' in cell for cell in named)


def test_numbers_of_the_tables_are_those_of_the_csvs(results, page):
    runs = schema.read(results / "runs.csv", "runs").set_index("run")["test_loss"]
    arms = schema.read(results / "arms.csv", "arms")
    arms = arms[arms["chain"] == "ultramem"]
    change = runs[arms["run"].iloc[2]] - runs[arms["run"].iloc[1]]
    row = section(page, "ablations").split(">+half vdim+proj</td>")[1].split("</tr>")[0]
    cells = re.findall(r"[−+]?[0-9]\.[0-9]{3}(?=<)", row)
    paper = arms.iloc[2][["paper_train_loss", "paper_val_loss", "paper_delta_val"]]
    want = [runs[arms["run"].iloc[2]] - SHIFT - 0.1, runs[arms["run"].iloc[2]], change, *paper]
    assert cells == [f"{value:{form}}".replace("-", "−") for value, form in zip(want, [".3f", ".3f", "+.3f"] * 2, strict=True)]
    assert f">{runs[arms['run'].iloc[-1]]:.3f}</text>" in section(page, "ablations")
    sweep = runs["sparsity.3-0.0-d64-s0"] - runs["sparsity.0-0.0-d64-s0"]
    assert f"{sweep:+.3f}".replace("-", "−") in section(page, "ablations")
    gap = runs["ultramem-d64-s0"] - runs["dense-d64-s0"]
    assert f"{gap:+.3f}".replace("-", "−") in section(page, "losses")


def test_text_from_the_csvs_is_escaped(page):
    assert "<b>memory</b>" not in page
    assert html.escape("<b>memory</b> & experts") in page


def test_verdicts_are_counted_by_what_could_show_them(page, results):
    frame, summary = schema.read(results / "claims.csv", "claims"), section(page, "summary")
    assert set(frame["verdict"]) == set(claims.SIGNS)
    for (kind, word), count in frame.groupby(["kind", "verdict"]).size().items():
        assert f'data-verdict="{word}" data-kind="{kind}"><b>{count}</b>' in summary, (kind, word)
    total = (frame["kind"] == "arithmetic").sum()
    assert f"Claims of arithmetic: {total}" in summary


def test_the_same_csvs_give_the_same_bytes_without_torch_or_the_trainer(results, page, tmp_path):
    out = tmp_path / "page.html"
    code = (
        "import sys; from reports.build import main; main(sys.argv[1:]);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'kernels'}), "
        "sorted(name for name in sys.modules if name.startswith('workflows.')))"
    )
    command = [sys.executable, "-c", code, "--results", str(results), "--out", str(out)]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] []"
    assert out.read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
