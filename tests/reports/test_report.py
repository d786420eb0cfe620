"""The report: drawn from synthetic CSVs alone, self-contained, and whole in a headless browser."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from repository import ROOT
from synthetic_fair import SHIFT, folder
from synthetic_folder import ARCHS, SIZES, run_row

from evals import stats
from evals.records import schema
from evals.records.errors import UserError
from reports import build, claims, evaluations, figures, published, scaling, sections, speedups, style, timings
from reports import page as parts

SECTIONS = [name for name, _, _ in sections.SECTIONS]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("results") / "synthetic")


@pytest.fixture(scope="module")
def page(results) -> str:
    return build.render(results)


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures hold their axes' labels alone: laying one out and saving it is most of what a page costs."""
    monkeypatch.setattr(style, "svg", lambda name, alt, figure: f'<svg aria-label="{html.escape(alt)}"></svg>')


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


def test_the_page_loads_nothing_and_is_light(page):
    loads = re.findall(r"""(?:\b(?:src|href|action|data)\s*=\s*["']|url\(["']?|@import\s+["']?)\s*([^"')\s]+)""", page)
    assert len(loads) > 100
    assert all(load.startswith(("#", "data:")) for load in loads), sorted(set(loads))
    assert "<link" not in page.replace('<link rel="icon" href="data:', "")
    assert len(page.encode()) < 5_000_000


def test_every_section_is_drawn_and_names_its_csv(page):
    for name in SECTIONS:
        assert '<p class="missing">' not in section(page, name), name
    for table in set(schema.TABLES) - {"provenance"}:  # of results/reference alone
        assert f"{table}.csv" in page
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


def test_one_curve_is_of_one_device(results):
    """Two devices in one setting would give each line two points a batch."""
    frame = timings.timings(parts.Results(results))
    other = frame[frame["kind"] == "measured"].assign(device="CPU: Another", p50_ms=lambda rows: 9 * rows["p50_ms"])
    both = timings.batch_panels(pd.concat([frame[frame["kind"] == "measured"], other]), "x")
    assert len(list(both)) == 2 * len(list(timings.batch_panels(other, "x")))


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


def test_a_conservative_speed_up_needs_a_roofline(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    rewrite(path / "latency.csv", "latency", lambda frame: frame.assign(predicted_ms=None))
    page = build.render(path)
    header, *rows = table(page, "Speed-up over MoE")
    assert {row[header.index("conservative")] for row in rows} == {"–"}
    assert {row[header.index("reading")] for row in rows} == {"MoE has no roofline", "memory is slower"}
    assert "–" not in {row[header.index("MoE / memory")] for row in rows}
    assert "no measured row has a predicted_ms" in section(page, "latency")


def test_sparse_ratios_pair_with_the_nearest(results):
    frame = timings.timings(parts.Results(results))
    pairs = speedups.speedups(frame[(frame["kind"] == "measured") & (frame["variant"] == "plain")])
    assert (pairs["sparse_ratio"] / pairs["sparse_ratio_moe"]).between(0.9, 1.11).all()
    lone = frame[~(frame["arch"].isin(["moe2", "moe8"]) & (frame["sparse_ratio"] < 5))]
    assert (speedups.speedups(lone[lone["kind"] == "measured"])["sparse_ratio"] > 5).all()
    assert (
        pairs[(pairs["batch"] == 64) & (pairs["dtype"] == "fp32") & (pairs["part"] == "model")]["sparse_ratio"].nunique() == 6
    )


def test_tricks_and_predictions_are_ratios_to_the_plain_step(page):
    rows = table(page, "inference tricks")
    assert [(row[0], row[9]) for row in rows[1:]] == [("folded", "1.20"), ("overlap", "0.90")]
    rows = {tuple(row[:6]): row[6:-1] for row in table(page, "Measured over predicted")}
    assert rows["MoE-8", "decode", "11.1", "whole model", "fp32", "1"] == ["1.10", "1.10", "1.50", "1.10", "1.10", "10%"]


def test_other_machines_times_stand_beside_ours_without_their_runs(undrawn, results, tmp_path):
    path = copy_of(results, tmp_path)
    change = {"device": "CUDA: Another", "run": "dense-d64-s0"}
    rewrite(path / "latency.csv", "latency", lambda frame: frame.assign(**change))
    page = build.render(results, [path])
    assert "measured, CUDA, fp32" in page
    assert "measured, CPU, fp32" in page
    assert "dense-d64-s0" in set(timings.timings(parts.Results(path))["run"])
    assert set(timings.timings(parts.Results(results, [path]))["run"]) == {""}


def test_bytes_are_counted_over_expected(page):
    rows = table(page, "Bytes counted over bytes expected")
    assert {cell for row in rows[1:] for cell in row[5:]} == {"0.900"}
    assert "published" in section(page, "access")


def test_three_points_are_no_law_and_four_are(results, page):
    rows = table(page, "Every fit")
    laws = {(row[0], row[1], row[2]): row[4:7] for row in rows[1:]}
    assert laws["activated parameters", "Dense", "–"] == ["not a law: 3 points, a law needs 4", "–", "–"]
    law, r2, worst = laws["sparse over activated parameters", "UltraMem", "half as dense"]
    assert law.startswith("y = a − b log₁₀(x): a = 4.6")
    assert 0.9 < float(r2) < 1
    assert 0 < float(worst) < 0.02
    series = [one for _, found in scaling._axes(parts.Results(results)) for one in found]
    slopes = [one.law.params["b"] for one in series if isinstance(one.law, stats.Fit)]
    assert slopes == pytest.approx([0.1, 0.1], abs=0.02)
    assert {one.law.n for one in series if isinstance(one.law, stats.NotALaw)} == {3}


def test_a_chain_alone_has_its_laws(undrawn, results, tmp_path):
    arms = schema.read(results / "arms.csv", "arms").query("chain == 'sparsity'")
    runs = schema.read(results / "runs.csv", "runs")
    schema.write(tmp_path / "arms.csv", "arms", arms)
    schema.write(tmp_path / "runs.csv", "runs", runs[runs["run"].isin(arms["run"])])
    page = build.render(tmp_path)
    assert {row[0] for row in table(page, "Every fit")[1:]} == {"sparse over activated parameters"}
    assert "runs.csv holds no finished run of the comparison" in section(page, "losses")


def test_a_line_is_drawn_through_a_law_only(results):
    lines = {}
    for words, series in scaling._axes(parts.Results(results)):
        axes = Figure().add_subplot()
        figures.laws.__wrapped__(axes, series, title="", x_label="", y_label="")
        lines[words] = len(axes.lines)
    assert set(lines.values()) == {0, 2}
    assert lines["sparse over activated parameters"] == 2


def test_the_papers_points_are_those_of_the_reference():
    frame = published.losses()
    dense = frame[frame["model"] == "Dense-1.6B"].iloc[0]
    assert (dense["arch"], dense["active_params"], dense["params"], dense["loss"]) == ("dense", 1.605e9, 1.61e9, 2.49)
    v2 = frame[frame["model"] == "V2-2.5B/120B-top256"]
    assert v2[["arch", "active_params", "params", "tokens", "loss"]].to_numpy().tolist() == [
        ["ultramem_v2", 2.5e9, 1.2e11, 1.6e12, 1.835]
    ]


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


def test_bold_is_for_clear_winners():
    def scores(values, stderr, better=True):
        rows = [{"arch": arch, "value": v, "stderr": stderr, "higher_is_better": better} for arch, v in values.items()]
        return pd.DataFrame(rows)

    near, far = {"dense": 0.4, "pkm": 0.5, "moe2": 0.45}, {"dense": 0.4, "pkm": 0.9, "moe2": 0.45}
    assert evaluations.clear_winner(scores(near, 0.1)) is None
    assert evaluations.clear_winner(scores(far, 0.1)) == "pkm"
    assert evaluations.clear_winner(scores(far, 0.01, better=False)) == "dense"
    assert evaluations.clear_winner(scores(far, 0.0)) is None
    assert evaluations.clear_winner(scores(far, float("nan"))) is None


def test_a_claim_leads_to_its_runs(page):
    row = section(page, "claims").split('<tr id="claim-C1">')[1].split("</tr>")[0]
    assert '<a href="#run-dense-d64-s0">dense-d64-s0</a>' in row
    assert "elsewhere" not in row


@pytest.mark.parametrize("text", ["", "device,id\nA,1\n"], ids=["empty", "foreign"])
def test_unusable_statements_are_one_sentence(undrawn, results, tmp_path, text):
    path = copy_of(results, tmp_path)
    (path / "statements.csv").write_text(text)
    with pytest.raises(UserError, match=r"statements.csv is (cut short|not a CSV)"):
        build.render(path)
    (path / "statements.csv").unlink()
    assert "statements.csv is absent" in build.render(path)


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
            assert f'<tr id="{style.anchor(row.run)}"' in page


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


def test_ablation_and_tuning_runs_stay_out_of_the_comparison(results):
    grid = parts.Results(results).grid
    assert sorted(grid["run"]) == sorted(f"{arch}-{size}-s0" for arch in ARCHS for size in SIZES)


def test_seeds_are_a_mean_and_a_spread_with_a_link_each(undrawn, tmp_path):
    path = folder(tmp_path / "three", seeds=3)
    page = build.render(path)
    losses = schema.read(path / "runs.csv", "runs").set_index("run")["test_loss"]
    losses = losses[[f"pkm-d64-s{seed}" for seed in range(3)]]
    assert f"{losses.mean():.3f} ± {losses.std():.3f}" in section(page, "losses")
    assert all(f'<a href="#run-pkm-d64-s{seed}">{seed}</a>' in section(page, "losses") for seed in range(3))
    assert "3 seeds" in page


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


@pytest.mark.parametrize(
    "absent", [{"runs"}, {"train", "arms"}, set(parts.WRITER) - {"runs"}], ids=["runs", "two", "all but runs"]
)
def test_an_absent_csv_is_a_sentence_with_a_reason(undrawn, results, tmp_path, absent):
    path = copy_of(results, tmp_path)
    for name in parts.FILES:
        if name.removesuffix("_modelled") in absent:
            (path / f"{name}.csv").unlink()
    page = html.unescape(build.render(path))
    for table in parts.WRITER:
        sentence = f"Not measured in this run: {table}.csv is absent ({parts.WRITER[table]})."
        assert (sentence in page) == (table in absent), table


def test_a_csv_without_rows_is_a_sentence_too(undrawn, results, tmp_path):
    folder = copy_of(results, tmp_path)
    schema.write(folder / "arms.csv", "arms", [])
    assert "Not measured in this run: arms.csv has no rows" in section(build.render(folder), "ablations")


def test_runs_alone_and_an_unfinished_run_make_a_report(results, tmp_path):
    folder = tmp_path / "alone"
    rows = [run_row("dense-d64-s0", "dense", "d64", 0, 4.5)]
    rows.append(run_row("pkm-d64-s0", "pkm", "d64", 0, 4.4, val_loss=None, train_loss=None, status="stopped", ended=""))
    schema.write(folder / "runs.csv", "runs", rows)
    page = build.render(folder)
    assert "4.500" in section(page, "losses")
    assert "stopped" in section(page, "provenance")
    schema.write(folder / "runs.csv", "runs", rows[1:])
    assert "stopped" in section(build.render(folder), "provenance")


def test_an_architecture_the_report_does_not_know_is_drawn(undrawn, tmp_path):
    rows = [run_row(f"{arch}-{size}-s0", arch, size, 0, 4.5) for arch in ("dense", "peer") for size in SIZES]
    schema.write(tmp_path / "runs.csv", "runs", rows)
    assert section(build.render(tmp_path), "losses").count("peer") >= 4


def test_a_foreign_csv_and_an_empty_folder_are_one_sentence(undrawn, results, tmp_path):
    folder = copy_of(results, tmp_path)
    text = (folder / "evals.csv").read_text()
    (folder / "evals.csv").write_text(text.replace("stderr", "standard_error", 1))
    with pytest.raises(UserError, match=r"evals.csv is not a CSV of table 'evals': it lacks 'stderr'"):
        build.render(folder)
    (folder / "evals.csv").write_text(text)
    (folder / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data.json is not JSON"):
        build.render(folder)
    (tmp_path / "empty").mkdir()
    for absent in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="snakemake"):
            build.render(absent)


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


PROBE_START = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
for (const level of ["error", "warn"]) console[level] = (...words) => problems.push(words.join(" "));
</script>"""
PROBE_END = """<script>
addEventListener("load", () => {
  const sized = figure => [...figure.querySelectorAll("svg, table")].every(part => {
    const box = part.getBoundingClientRect();
    return box.width > 5 && box.height > 5;
  });
  const figures = [...document.querySelectorAll("figure")];
  const claims = document.querySelector("#claims table"), first = () => claims.tBodies[0].rows[0].cells[7].textContent;
  claims.tHead.rows[0].cells[7].querySelector("button").click();
  claims.tHead.rows[0].cells[7].querySelector("button").click();
  const shown = () => [...claims.tBodies[0].rows].filter(row => !row.hidden).length;
  document.querySelector("[data-verdict='not tested']").click();
  const result = {
    problems, figures: figures.length, empty: figures.filter(figure => !sized(figure)).length,
    shown: shown(), first: first(),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
  };
  document.documentElement.dataset.result = JSON.stringify(result);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")
@pytest.mark.parametrize("width", [500, 820, 1400])
def test_a_browser_shows_it_without_a_complaint(page, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(page.replace("<head>", "<head>" + PROBE_START).replace("</body>", PROBE_END + "</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --window-size={width},900 --user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags.split(), "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert result["problems"] == []
    assert "CONSOLE" not in done.stderr, done.stderr
    assert result["figures"] == page.count("<figure")
    assert result["empty"] == 0
    assert result["overflow"] <= 0, result
    assert result["shown"] == 2
    assert result["first"] == "3"
