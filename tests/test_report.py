"""The report: drawn from synthetic CSVs alone, self-contained, and whole in a headless browser."""

import html
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evals import schema
from reports import build, figures, sections
from reports import page as parts
from workflows.errors import UserError

ROOT = Path(__file__).parents[1]
ARCHS = ("dense", "moe2", "moe8", "pkm", "ultramem", "ultramem_v2")
SIZES = {"d64": 64, "d128": 128, "d256": 256}
DEVICE = "CPU: Synthetic 9000"
SECTIONS = [name for name, _, _ in sections.SECTIONS]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


def run_row(run: str, arch: str, size: str, seed: int, loss: float, **change) -> dict:
    d_model = SIZES[size]
    active = 12 * d_model**2 * 4
    params = active if arch == "dense" else 12 * active
    row = {
        "run": run,
        "preset": "synthetic",
        "arch": arch,
        "size": size,
        "seed": seed,
        "d_model": d_model,
        "n_layers": 4,
        "params": params,
    }
    row |= {"active_params": active, "sparse_params": params - active, "flops_per_token": 2.0 * active, "tokens": 2_000_000}
    row |= {"compute_share_memory": 0.17, "steps": 488, "train_loss": loss - 0.1, "val_loss": loss, "val_bpb": loss / 2.8}
    row |= {"tokens_per_s": 9e5 / d_model, "core_seconds": 2.2 * d_model, "wall_s": 2.3 * d_model, "peak_rss_mb": 812.5}
    row |= {"precision": "bf16", "threads": 1, "device": DEVICE, "status": "finished", "config_sha": "c0ffee" * 8}
    row |= {"source_sha": "5eed" * 10, "git_commit": "0123456789abcdef" * 2, "git_dirty": False, "data_sha": "da7a" * 10}
    row |= {
        "seed_data": seed,
        "seed_init": seed + 1,
        "seed_rest": seed + 2,
        "python": "3.11.2",
        "torch": "2.13.0",
        "resumed": 0,
    }
    row |= {"started": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:05:00Z", "host_os": "Linux x86_64"}
    return row | change


def synthetic(folder: Path, seeds: int = 1) -> Path:
    """Every table, made up: six architectures, three sizes, two chains and a sweep."""
    noise = random.Random(0)
    tables = {name: [] for name in schema.TABLES}
    for place, (size, d_model) in enumerate(SIZES.items()):
        for rank, arch in enumerate(ARCHS):
            sparse = {} if arch == "dense" else {"params_mismatch": noise.uniform(-0.02, 0.02), "memory_share": 0.2}
            active = 12 * d_model**2 * 4
            row = {
                "preset": "synthetic",
                "size": size,
                "arch": arch,
                "role": "matched",
                "d_ff": 4 * d_model,
                "params": 12 * active,
            }
            row |= {"active_params": active, "sparse_params": 11 * active, "flops_per_token": 2.0 * active, "trained": True}
            row |= {"flops_mismatch": noise.uniform(-0.01, 0.01), "bytes_b1": 4.0 * active, "bytes_b64": 30.0 * active}
            tables["matched_compute"].append(row | sparse)
            if arch == "dense":
                tables["matched_compute"].append(row | {"role": "comparator", "trained": False, "d_ff": 3 * d_model})
            for seed in range(seeds):
                run = f"{arch}-{size}-s{seed}"
                end = 4.6 - 0.35 * place - 0.06 * rank + noise.gauss(0, 0.01)
                tables["runs"].append(run_row(run, arch, size, seed, end))
                for step in range(1, 489, 2):
                    point = {"run": run, "step": step, "tokens": step * 4096, "loss": end + 4 * step**-0.6, "aux_loss": 0.001}
                    point |= {"lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 9e5 / d_model, "elapsed_s": step * 0.4}
                    tables["train"].append(point | {"split": "train"})
                for step in (122, 244, 366, 488):
                    for source, shift in (("all", 0), ("wiki", 0.1), ("dictionary", -0.2), ("code docs", -0.4)):
                        loss = end + 4 * step**-0.6 + shift
                        point = {
                            "run": run,
                            "step": step,
                            "tokens": step * 4096,
                            "split": "validation",
                            "source": source,
                            "loss": loss,
                        }
                        tables["train"].append(point)
                for metric in ("share of values used", "KL from uniform", "top-1 score") * (arch != "dense"):
                    for step in (122, 244, 366, 488):
                        for layer in range(4):
                            value = 1 - math.exp(-step / 200) + 0.05 * layer + 0.02 * rank
                            tables["health"].append(
                                {"run": run, "step": step, "layer": layer, "metric": metric, "value": value}
                            )
                for task, chance in (
                    ("arc_easy", 0.25),
                    ("piqa", 0.5),
                    ("winogrande", 0.5),
                    ("sciq", 0.25),
                    ("boolq", 0.5),
                ):
                    score = {
                        "run": run,
                        "task": task,
                        "metric": "acc",
                        "n_shot": 0,
                        "n": 500,
                        "value": chance + 0.02 * rank + 0.01 * place,
                    }
                    tables["evals"].append(score | {"stderr": 0.02, "chance": chance, "higher_is_better": True})
                score = {"run": run, "task": "wiki", "metric": "bits per byte", "n_shot": 0, "n": 300, "value": end / 2.8}
                tables["evals"].append(score | {"stderr": 0.01, "higher_is_better": False})
                spent = {
                    "target": "train",
                    "run": run,
                    "core_seconds": 2.2 * d_model,
                    "tokens": 2e6,
                    "flops": 2e6 * 6.0 * active,
                }
                tables["cost"].append(spent)
                plan = {
                    "run": run,
                    "arch": arch,
                    "size": size,
                    "tokens": 2_000_000,
                    "predicted_core_s": 2.0 * d_model,
                    "device": DEVICE,
                }
                tables["plan"].append(plan | {"predicted_disk_mb": 40.0, "calibrated_on": f"{arch}-d64-s0"})
    chains = {
        "ablation_ultramem": (
            "+rm softmax",
            "+half vdim+proj",
            "+share query",
            "+split big mem&skip",
            "+IVE",
            "+TDQKR",
        ),
        "ablation_ultramem_v2": ("+memory in every block", "+one projector", "+PEER values", "+variance-matched init"),
    }
    for chain, steps in chains.items():
        loss, paper = 4.5, 2.828
        for order, label in enumerate(("base", *steps)):
            change, published = (noise.gauss(-0.02, 0.02), noise.gauss(-0.012, 0.01)) if order else (0, 0)
            loss, paper = loss + change, paper + published
            run = f"{chain}-{order}-d64-s0"
            tables["runs"].append(run_row(run, "ultramem", "d64", 0, loss))
            arm = {
                "chain": chain,
                "kind": "cumulative",
                "step": f"s{order}",
                "order": order,
                "label": label,
                "set": '{"x": 1}',
                "run": run,
            }
            arm |= {"paper_train_loss": paper - 0.2, "paper_val_loss": paper}
            tables["arms"].append(arm | ({"paper_delta_val": published} if order else {}))
    for order, label in enumerate(("E=1", "E=4", "E=9", "E=16")):
        run = f"sweep-E-{order}-d64-s0"
        arm = {
            "chain": "ultramem_sweep_E",
            "kind": "sweep",
            "step": f"s{order}",
            "order": order,
            "label": label,
            "set": "{}",
            "run": run,
        }
        tables["runs"].append(run_row(run, "ultramem", "d64", 0, 4.4 - 0.01 * order))
        tables["arms"].append(arm | ({"paper_delta_val": -0.017 - 0.004 * order} if order else {}))
    for arch in ARCHS:
        for lr in (3e-4, 1e-3, 3e-3):
            run = f"tuning-{arch}-{lr}"
            loss = 4.5 + 0.1 * math.log10(lr / 1e-3) ** 2 - 0.02 * ARCHS.index(arch)
            tables["runs"].append(run_row(run, arch, "d64", 0, loss, tokens=500_000))
            setting = {"arch": arch, "setting": json.dumps({"lr": lr}), "lr": lr, "init": "paper", "run": run, "val_loss": loss}
            tables["tuning"].append(setting | {"chosen": lr == 1e-3})
        for d_model, threads in ((64, 1), (128, 1), (256, 1)):
            timed = {
                "benchmark": "training step",
                "impl": "ours",
                "arch": arch,
                "d_model": d_model,
                "tokens": 4096,
                "threads": threads,
            }
            timed |= {
                "precision": "bf16",
                "p20_ms": 190.0,
                "p50_ms": 200.0,
                "p80_ms": 215.0,
                "tokens_per_s": 20480.0,
                "n_iters": 30,
            }
            timed |= {"ratio": 2.4 - 0.2 * ARCHS.index(arch), "versus": "plain PyTorch GPT, bf16", "device": DEVICE}
            tables["speed"].append(timed)
        for part in ("model", "ffn"):
            for batch in (1, 4, 16, 64, 256):
                slow = {"moe2": 3.0, "moe8": 4.0}.get(arch, 1.0) if 4 <= batch <= 64 else 1.1
                step = {
                    "run": f"{arch}-d256-s0",
                    "arch": arch,
                    "size": "d256",
                    "phase": "decode",
                    "part": part,
                    "batch": batch,
                    "context": 256,
                }
                step |= {
                    "kv": "mha",
                    "sparse_ratio": 0.0 if arch == "dense" else 11.0,
                    "dtype": "fp32",
                    "bytes_declared": 1e6 * batch,
                }
                middle = slow * (1 + 0.1 * ARCHS.index(arch)) * (1 + batch / 40) * (1.0 if part == "model" else 0.5)
                spread = {"p20_ms": 0.92 * middle, "p50_ms": middle, "p80_ms": 1.1 * middle, "n_iters": 50, "threads": 1}
                tables["latency"].append(step | spread | {"kind": "measured", "device": DEVICE})
                modelled = {
                    "run": "",
                    "size": "1.6B",
                    "context": 2048,
                    "dtype": "bf16",
                    "p50_ms": 2 * middle,
                    "kind": "modelled",
                }
                for device in ("CUDA: A100", "CUDA: H100"):
                    tables["latency"].append(step | modelled | {"run": f"{arch}-1.6B", "device": device})
        for ratio in (0.0,) if arch == "dense" else (3.0, 11.0, 23.0):
            step = {
                "run": "",
                "arch": arch,
                "size": "d256",
                "phase": "decode",
                "part": "ffn",
                "batch": 64,
                "context": 256,
                "kv": "mha",
            }
            step |= {
                "sparse_ratio": ratio,
                "dtype": "fp32",
                "threads": 1,
                "p20_ms": 1.0 + ratio / 10,
                "p50_ms": 1.1 + ratio / 9,
                "p80_ms": 1.2 + ratio / 8,
            }
            if ratio not in (0.0, 11.0):
                tables["latency"].append(step | {"n_iters": 50, "bytes_declared": 1e6, "kind": "measured", "device": DEVICE})
        for kind, routing in (("declared-worst", "worst"), ("declared-expected", "uniform"), ("counted", "trained")):
            for batch in (1, 16, 256):
                touched = {
                    "run": f"{arch}-d256-s0",
                    "arch": arch,
                    "batch": batch,
                    "routing": routing,
                    "kind": kind,
                    "rows_read": 8.0 * batch,
                }
                tables["access"].append(
                    touched | {"rows_unique": 7.0 * batch, "bytes": 1e6 * (1 + ARCHS.index(arch)) * batch**0.7}
                )
    for place, verdict in enumerate(list(sections.SIGNS) * 5):
        claim = {"id": f"C{place + 1}", "paper": ("P1", "P2", "blog")[place % 3], "source": "table 1", "verdict": verdict}
        claim |= {
            "statement": f"Claim {place}: <b>memory</b> & experts reach the same loss at equal compute.",
            "metric": "a - b",
        }
        claim |= {"reason": "The interval of the paired difference over three seeds holds zero.", "published": "−0.02"}
        claim |= {"value": -0.01, "ci_low": -0.03, "ci_high": 0.01, "n": 3} if verdict != "not tested" else {}
        tables["claims"].append(claim | {"scale": "d256, 2 M tokens"})
    for target, seconds in (("data", 90.0), ("latency", 240.0), ("evaluation", 180.0)):
        tables["cost"].append({"target": target, "core_seconds": seconds})
    for name, rows in tables.items():
        schema.write(folder / f"{name}.csv", name, rows)
    sources = {
        name: {"documents": 1000, "bytes": 10**7, "licence": "CC-BY-SA 4.0", "sha256": "ab" * 32}
        for name in ("wiki", "dictionary")
    }
    (folder / "data.json").write_text(json.dumps({"corpus": "bundled", "tokens": 8_123_456, "sources": sources}))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return synthetic(tmp_path_factory.mktemp("results") / "synthetic")


@pytest.fixture(scope="module")
def page(results) -> str:
    return build.render(results)


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def copy_of(results: Path, folder: Path) -> Path:
    return Path(shutil.copytree(results, folder / "copy"))


def test_the_page_loads_nothing_and_is_light(page):
    loads = re.findall(r"""(?:\b(?:src|href|action|data)\s*=\s*["']|url\(["']?|@import\s+["']?)\s*([^"')\s]+)""", page)
    assert len(loads) > 100
    assert all(load.startswith(("#", "data:")) for load in loads), sorted(set(loads))
    assert "<link" not in page.replace('<link rel="icon" href="data:', "")
    assert len(page.encode()) < 5_000_000


def test_every_section_is_drawn_and_names_its_csv(page):
    for name in SECTIONS:
        assert '<p class="missing">' not in section(page, name), name
    for table in schema.TABLES:
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


def test_devices_and_models_are_labelled_and_never_on_one_axis(page):
    figures_of = re.findall(r'<figure class="picture">.*?</figure>', section(page, "latency"), re.S)
    assert len(figures_of) == 2
    for figure, kind, device, other in zip(figures_of, ("measured", "modelled"), ("CPU", "CUDA"), ("CUDA", "CPU"), strict=True):
        assert f'<span class="badge">{kind}</span>' in figure
        assert f'<span class="badge">{device}</span>' in figure
        assert f"{other}: " not in figure
    labels = re.findall(r'aria-label="Decode step, 1.6B, whole model\s+modelled, ([^,]*),', section(page, "latency"))
    assert labels == ["CUDA: A100", "CUDA: H100"]


def test_every_loss_leads_to_its_run(page, results):
    targets = re.findall(r'href="#([^"]+)"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids), sorted(set(targets) - set(ids))[:5]
    for row in schema.read(results / "runs.csv", "runs").itertuples():
        if row.run.endswith("-s0") and row.run.split("-")[0] in ARCHS:
            assert f'<a href="#{figures.anchor(row.run)}"><b>{row.val_loss:.3f}</b>' in page or (
                f'<a href="#{figures.anchor(row.run)}">{row.val_loss:.3f}' in page
            )
            assert f'<tr id="{figures.anchor(row.run)}"' in page


def test_numbers_of_the_tables_are_those_of_the_csvs(results, page):
    runs = schema.read(results / "runs.csv", "runs").set_index("run")["val_loss"]
    arms = schema.read(results / "arms.csv", "arms")
    arms = arms[arms["chain"] == "ablation_ultramem"]
    change = runs[arms["run"].iloc[2]] - runs[arms["run"].iloc[1]]
    row = section(page, "ablations").split(">+half vdim+proj</td>")[1].split("</tr>")[0]
    cells = re.findall(r"[−+]?[0-9]\.[0-9]{3}(?=<)", row)
    paper = arms.iloc[2][["paper_train_loss", "paper_val_loss", "paper_delta_val"]]
    want = [runs[arms["run"].iloc[2]] - 0.1, runs[arms["run"].iloc[2]], change, *paper]
    assert cells == [f"{value:{form}}".replace("-", "−") for value, form in zip(want, [".3f", ".3f", "+.3f"] * 2, strict=True)]
    assert f">{runs[arms['run'].iloc[-1]]:.3f}</text>" in section(page, "ablations")
    sweep = runs["sweep-E-3-d64-s0"] - runs["sweep-E-0-d64-s0"]
    assert f"{sweep:+.3f}".replace("-", "−") in section(page, "ablations")
    gap = runs["ultramem-d64-s0"] - runs["dense-d64-s0"]
    assert f"{gap:+.3f}".replace("-", "−") in section(page, "losses")


def test_ablation_and_tuning_runs_stay_out_of_the_comparison(results):
    grid = parts.Results(results).grid
    assert sorted(grid["run"]) == sorted(f"{arch}-{size}-s0" for arch in ARCHS for size in SIZES)


def test_seeds_are_a_mean_and_a_spread_with_a_link_each(tmp_path):
    folder = synthetic(tmp_path / "three", seeds=3)
    page = build.render(folder)
    losses = schema.read(folder / "runs.csv", "runs").set_index("run")["val_loss"]
    losses = losses[[f"pkm-d64-s{seed}" for seed in range(3)]]
    assert f"{losses.mean():.3f} ± {losses.std():.3f}" in section(page, "losses")
    assert all(f'<a href="#run-pkm-d64-s{seed}">{seed}</a>' in section(page, "losses") for seed in range(3))
    assert "3 seeds" in page


def test_text_from_the_csvs_is_escaped(page):
    assert "<b>memory</b>" not in page
    assert html.escape("<b>memory</b> & experts") in page


def test_verdicts_are_counted(page):
    for word in sections.SIGNS:
        assert re.search(rf'data-verdict="{word}"><b>5</b>', page), word


@pytest.mark.parametrize(
    "absent", [{"runs"}, {"train", "arms"}, set(schema.TABLES) - {"runs"}], ids=["runs", "two", "all but runs"]
)
def test_an_absent_csv_is_a_sentence_with_a_reason(results, tmp_path, absent):
    folder = copy_of(results, tmp_path)
    for table in absent:
        (folder / f"{table}.csv").unlink()
    page = html.unescape(build.render(folder))
    for table in schema.TABLES:
        sentence = f"Not measured in this run: {table}.csv is absent ({parts.WRITER[table]})."
        assert (sentence in page) == (table in absent), table


def test_a_csv_without_rows_is_a_sentence_too(results, tmp_path):
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


def test_an_architecture_the_report_does_not_know_is_drawn(tmp_path):
    rows = [run_row(f"{arch}-{size}-s0", arch, size, 0, 4.5) for arch in ("dense", "peer") for size in SIZES]
    schema.write(tmp_path / "runs.csv", "runs", rows)
    assert section(build.render(tmp_path), "losses").count("peer") >= 4


def test_a_foreign_csv_and_an_empty_folder_are_one_sentence(results, tmp_path):
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


def test_the_same_csvs_give_the_same_bytes_without_models_or_torch(results, page, tmp_path):
    out = tmp_path / "page.html"
    code = (
        "import sys; from reports.build import main; main(sys.argv[1:]);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'models', 'kernels'}), "
        "sorted(name for name in sys.modules if name.startswith('workflows.')))"
    )
    command = [sys.executable, "-c", code, "--results", str(results), "--out", str(out)]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] ['workflows.errors']"
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
    assert result["shown"] == 5
    assert result["first"] == "3"
