"""The sections of the report, first to last: each a function from `Results` to blocks.

No number is computed here beyond means, differences and sums of rows. A section whose CSV is absent says so.
"""

import json
import textwrap
from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.figures import WIDE, in_order, key, look, si
from reports.page import (
    Cell,
    Facts,
    Missing,
    Picture,
    Results,
    Table,
    Text,
    Verdicts,
    arch_cell,
    kinds,
    number,
    span,
    threads,
)
from workflows.errors import UserError

SIGNS = {"reproduced": "●", "direction only": "◐", "not reproduced": "○", "inconclusive": "◇", "not tested": "–"}


def summary(results: Results) -> Iterator:
    """The first screen: verdicts, loss at matched compute, latency against batch, the ablations' waterfalls."""
    if "claims" in results:
        counts = results["claims"]["verdict"].value_counts()
        yield Verdicts([(sign, word, int(counts.get(word, 0))) for word, sign in SIGNS.items()])
    else:
        yield results.missing("claims")
    panels, badges, sources = [], [], []
    if len(results.grid):
        panels.append(
            _loss_against(results, "summary-loss", "active_params", "activated parameters", "Loss at matched compute")
        )
        badges += kinds(results.grid["device"])
        sources.append("runs.csv")
    for _, panel, labels in list(_latency_panels(results, "summary"))[:1]:
        panels.append(panel)
        badges += labels
        sources.append("latency.csv")
    for name, chain in _cumulative(results):
        panels.append(_waterfall(f"summary-{name}", name, chain))
        sources.append("arms.csv")
    if panels:
        yield Picture(
            " + ".join(dict.fromkeys(sources)),
            "Loss at matched compute, the time of one step against batch size, and the loss after each improvement of "
            "a paper, so far as they were measured. Each is explained in its section.",
            results.context(results.grid),
            panels,
            results.archs,
            tuple(dict.fromkeys(badges)),
        )
    yield from (results.missing(table) for table in ("latency", "arms") if table not in results)


def claims(results: Results) -> Iterator:
    """Every claim with its verdict."""
    if "claims" not in results:
        yield results.missing("claims")
        return
    rows = []
    for row in results["claims"].itertuples():
        interval = "–" if pd.isna(row.ci_low) else f"{row.ci_low:.3g} … {row.ci_high:.3g}".replace("-", "−")
        rows.append(
            [
                Cell(row.id, id=f"claim-{row.id}"),
                Cell(f"{SIGNS[row.verdict]} {row.verdict}", row.verdict, kind=row.verdict.replace(" ", "-")),
                Cell(row.statement, title=row.metric, kind="prose"),
                Cell(row.reason, kind="prose"),
                Cell(row.published or "–"),
                number(row.value, ".4g"),
                Cell(interval),
                number(row.n, "d"),
                Cell(row.scale or "–"),
                Cell(f"{row.paper}, {row.source}", kind="prose"),
            ]
        )
    yield Table(
        "claims.csv",
        "The claims of both papers (P1 UltraMem, P2 UltraMemV2) and of what is said about them (blog). A verdict holds "
        "at the scale that was run and no further. Hover over a claim for its metric.",
        results.context(results.grid),
        ["id", "verdict", "claim", "reason", "published", "ours", "95 % interval", "n", "scale", "source"],
        rows,
        kinds(results.grid["device"]),
        filters=tuple(SIGNS),
        searchable=True,
        tall=True,
    )


def losses(results: Results) -> Iterator:
    """The loss table and curves of the comparison."""
    grid = results.grid
    if grid.empty:
        yield results.missing("runs")
        return
    context, badges = results.context(grid), kinds(grid["device"])
    means = grid.groupby(["size", "arch"])["val_loss"].mean()
    rows = []
    for arch in results.archs:
        of_arch = [(size, grid[(grid["arch"] == arch) & (grid["size"] == size)]) for size in results.sizes]
        best = [means.get((size, arch)) == means[size].min() for size in results.sizes]
        cells = [results.mean(here, "val_loss", strong=strong) for (_, here), strong in zip(of_arch, best, strict=True)]
        rows.append([arch_cell(arch), *cells])
    yield Table(
        "runs.csv",
        "Validation loss in nats per token, all sources, at matched compute: mean ± standard deviation over seeds, "
        "lowest in bold. With one seed a small difference is no ranking.",
        context,
        ["architecture", *results.sizes],
        rows,
        badges,
    )
    sources = _by_source(results)
    dense = grid[grid["arch"].map(key) == "dense"].groupby("size")["val_loss"].mean()
    rows = []
    for place, size in enumerate(results.sizes):
        for arch in in_order(grid.loc[grid["size"] == size, "arch"]):
            here = grid[(grid["size"] == size) & (grid["arch"] == arch)]
            row = [Cell(size, place), arch_cell(arch), results.mean(here, "train_loss"), results.mean(here, "val_loss")]
            row += [number(means[size, arch] - dense.get(size, float("nan")), "+.3f"), results.mean(here, "val_bpb")]
            row += [results.mean(here[["run", "seed"]].merge(last, on="run"), "loss") for last in sources.values()]
            rows.append([*row, results.mean(here, "tokens", si), results.mean(here, "core_seconds", si)])
    header = ["size", "architecture", "train loss", "validation loss", "against dense", "bits per byte", *sources]
    yield Table(
        "runs.csv" + " + train.csv" * bool(sources),
        "Losses in nats per token; validation also by source of the corpus. Every number leads to its run.",
        context,
        [*header, "tokens", "core-seconds"],
        rows,
        badges,
    )
    if "train" not in results:
        yield results.missing("train")
        return
    train = results.joined("train")
    for split, source in (("validation", "all"), ("train", "")):
        frame = train[(train["split"] == split) & (train["source"] == source) & (train["tokens"] > 0)]
        words = {"x_label": "tokens", "y_label": f"{split} loss (nats/token)", "by": ("arch", "run"), "log": "x"}
        panels = [
            figures.curves(f"curve-{split}-{place}", _thinned(here), "tokens", "loss", title=size, **words)
            for place, size in enumerate(results.sizes)
            if len(here := frame[frame["size"] == size])
        ]
        if panels:
            smooth = " A curve of more than 120 points is a running median over 1/40 of the run." * (split == "train")
            caption = f"{split.capitalize()} loss against tokens, one line a run, one panel a size.{smooth}"
            yield Picture("train.csv", caption, context, panels, results.archs, badges)


def scaling(results: Results) -> Iterator:
    """Loss against what it costs."""
    grid = results.grid
    if grid.empty:
        yield results.missing("runs")
        return
    names = {
        "active_params": "activated parameters",
        "params": "total parameters",
        "core_seconds": "training core-seconds",
    }
    yield Picture(
        "runs.csv",
        "Validation loss against activated parameters, total parameters and core-seconds of training (means over "
        "seeds; shaded: lowest to highest). Lines join the sizes of an architecture and are no fit.",
        results.context(grid),
        [
            _loss_against(results, f"scaling-{column}", column, words, f"Against {words}")
            for column, words in names.items()
            if grid[column].notna().any()
        ],
        results.archs,
        kinds(grid["device"]),
    )


def ablations(results: Results) -> Iterator:
    """Each chain beside the paper's numbers."""
    if "arms" not in results:
        yield results.missing("arms")
        return
    for place, name in enumerate(dict.fromkeys(results["arms"]["chain"])):
        chain = _chain(results, name)
        kind = chain["kind"].iloc[-1]
        done = results.runs[results.runs["run"].isin(chain["run"])]
        context, badges = results.context(done), (*kinds(done["device"]), "published")
        against = "the previous row" if kind == "cumulative" else "the base"
        rows = []
        for row in chain.itertuples():
            href = results.href(row.run)
            ours = [
                number(row.train_loss, ".3f", href),
                number(row.val_loss, ".3f", href),
                number(row.delta, "+.3f", href),
            ]
            paper = [number(row.paper_train_loss, ".3f"), number(row.paper_val_loss, ".3f")]
            paper += [number(row.paper_delta_val, "+.3f"), _agreement(row.delta, row.paper_delta_val)]
            rows.append([number(row.order, "d"), Cell(row.label, title=row.set), *ours, *paper])
        yield Table(
            "arms.csv + runs.csv",
            f"{name} ({kind}): ours beside the paper's, change against {against}. "
            "The paper's numbers are of its own scale and data: signs and order compare, sizes do not. Hover over a "
            "step for its config.",
            context,
            ["#", "step", "train loss", "val loss", "change", "paper train", "paper val", "paper change", "sign"],
            rows,
            badges,
        )
        if not chain["val_loss"].notna().any():
            yield Missing(f"Not measured in this run: no run of the chain {name} has a validation loss.")
            continue
        panels = [_waterfall(f"chain-{place}", name, chain)] if kind == "cumulative" else []
        steps = chain[chain["delta"].notna() | chain["paper_delta_val"].notna()]
        if len(steps):
            rows = (list(steps["label"]), list(steps["delta"]), list(steps["paper_delta_val"]))
            shape = {"title": "Change by step", "width": WIDE, "height": 1.0 + 0.26 * len(steps)}
            panels.append(figures.changes(f"change-{place}", *rows, **shape))
        if panels:
            yield Picture(
                "arms.csv + runs.csv",
                f"{name}: loss after each step and the change each step makes. Bars are ours, blue where the loss "
                "falls and orange where it rises; diamonds are the paper's.",
                context,
                panels,
                badges=badges,
            )


def evaluations(results: Results) -> Iterator:
    """Scores with standard error, chance and n."""
    if "evals" not in results:
        yield results.missing("evals")
        return
    evals = results.joined("evals")
    if evals.empty:
        yield Missing("Not measured in this run: evals.csv scores none of the runs of the comparison.")
        return
    sizes = [size for size in reversed(results.sizes) if (evals["size"] == size).any()]
    for size in sizes:
        here, of_size = evals[evals["size"] == size], results.grid[results.grid["size"] == size]
        context, badges, archs = results.context(of_size), kinds(of_size["device"]), in_order(here["arch"])
        rows = []
        for (task, metric, n_shot), of_task in here.groupby(["task", "metric", "n_shot"], sort=False):
            means = of_task.groupby("arch")["value"].mean()
            best = means.max() if of_task["higher_is_better"].iloc[0] else means.min()
            cells = [_score(results, of_task[of_task["arch"] == arch], means.get(arch) == best) for arch in archs]
            about = [number(n_shot, "d"), number(of_task["n"].iloc[0], "d"), number(of_task["chance"].iloc[0], ".3f")]
            rows.append([Cell(task), Cell(metric), *about, *cells])
        yield Table(
            "evals.csv",
            f"Scores at size {size}: value ± standard error over the items (± standard deviation over seeds where "
            "there are several), best in bold. A score within two standard errors of chance shows nothing.",
            context,
            ["task", "metric", "shots", "n", "chance", *(look(arch).label for arch in archs)],
            rows,
            badges,
            searchable=len(rows) > 12,
        )
        known = here[here["chance"].notna()].drop_duplicates(["task", "run"])
        if size == sizes[0] and len(known):
            shape = {"width": WIDE, "height": 1.0 + 0.34 * known["task"].nunique()}
            drawn = figures.dots("evals", known, title=f"Size {size}", x_label="score", **shape)
            words = f"Scores at size {size} with one standard error; the tick is chance. Tasks whose chance level is known."
            yield Picture("evals.csv", words, context, [drawn], archs, badges)


def latency(results: Results) -> Iterator:
    """Time of a step against batch and against sparse ratio; measured and modelled never on one axis."""
    if "latency" not in results:
        yield results.missing("latency")
        return
    frame, drawn = results["latency"], list(_latency_panels(results, "latency"))
    ends = {"measured": "Median; shaded from the 20th to the 80th percentile.", "modelled": "By the roofline model."}
    for kind, end in ends.items():
        panels, here = [panel for this, panel, _ in drawn if this == kind], frame[frame["kind"] == kind]
        if panels:
            yield Picture(
                "latency.csv",
                f"Time of one step, {kind}: against batch size at the sparse ratio with the most batches, and against "
                f"sparse ratio at a fixed batch (dense as a dashed line). {end}",
                " · ".join(sorted(here["device"].unique())),
                panels,
                in_order(here["arch"]),
                (*kinds(here["device"]), kind),
            )
    badges = (*kinds(frame["device"]), *sorted(frame["kind"].unique()))
    listing = results.listing("latency", frame)
    yield Table("latency.csv", "Every point of the curves.", "", *listing, badges, searchable=True, tall=True)


def access(results: Results) -> Iterator:
    """Bytes of weights against batch: declared by formula, counted from indices."""
    if "access" not in results:
        yield results.missing("access")
        return
    frame = results["access"]
    whole = frame[frame["layer"].isna()]
    if whole.empty:
        whole = frame.groupby(["run", "arch", "batch", "routing", "kind"], as_index=False)["bytes"].sum()
    words = {"x_label": "tokens in the step", "y_label": "bytes of weights", "log": "xy", "by": ("arch", "run")}
    panels = []
    for (kind, routing), here in whole.groupby(["kind", "routing"]):
        if here["batch"].nunique() > 1:
            title = kind.replace("-", ", ") + f"; {routing} routing" * (routing not in kind)
            panels.append(figures.curves(f"access-{len(panels)}", results.linked(here), "batch", "bytes", title=title, **words))
    badges = tuple(sorted({kind.partition("-")[0] for kind in frame["kind"]}))
    if panels:
        yield Picture(
            "access.csv",
            "Bytes of weights that one step reads against the tokens in it: by the cost formula (worst case, expected) "
            "and counted from the indices that trained models chose.",
            "",
            panels,
            in_order(whole["arch"]),
            badges,
        )
    listing = results.listing("access", frame)
    yield Table("access.csv", "Every point; no layer means the whole model.", "", *listing, badges, searchable=True, tall=True)


def matched(results: Results) -> Iterator:
    """What matched compute means here, row by row."""
    if "matched_compute" not in results:
        yield results.missing("matched_compute")
        return
    frame = results["matched_compute"]
    worst = frame.loc[frame["role"] == "matched", ["flops_mismatch", "params_mismatch"]].abs().max().fillna(0)
    yield Text(
        f"Within a size all architectures have equal FLOPs per token, twice the activated parameters without the "
        f"embedding (largest mismatch {worst['flops_mismatch']:.2%}), and the sparse ones equal total parameters "
        f"(largest mismatch {worst['params_mismatch']:.2%}). The comparator is the papers' narrower dense model, not "
        "held to the budget."
    )
    names = "size arch role params active_params sparse_params flops_per_token flops_mismatch params_mismatch memory_share "
    names += "bytes_b1 bytes_b64 d_ff d_expert n_experts top_k n_keys d_key d_value trained"
    yield Table(
        "matched_compute.csv",
        "Counts by closed form, embedding left out. memory_share: retrieval and projections in the FLOPs of "
        "feed-forward plus memory. Bytes: expected under uniform routing, for 1 and 64 tokens.",
        "",
        *results.listing("matched_compute", frame, names.split()),
        ("declared",),
    )


def speed(results: Results) -> Iterator:
    """Training speed: of the runs themselves, and of the benchmark."""
    grid = results.grid[results.grid["tokens_per_s"].notna()]
    panels = []
    for size in results.sizes if len(grid) else ():
        means = grid[grid["size"] == size].groupby("arch").agg(tokens_per_s=("tokens_per_s", "mean"), run=("run", "first"))
        means = means.loc[in_order(means.index)].reset_index()
        means["label"] = [look(arch).label for arch in means["arch"]]
        panels.append(
            figures.bars(f"speed-{results.sizes.index(size)}", means, "tokens_per_s", "label", title=size, x_label="tokens/s")
        )
    if panels:
        yield Picture(
            "runs.csv",
            "Training tokens per second, median over the steps of a run (mean over seeds). Runs may have shared the "
            "machine with others: the benchmark is the comparison.",
            results.context(grid),
            panels,
            badges=kinds(grid["device"]),
        )
    if "speed" not in results:
        yield results.missing("speed")
        return
    frame = results["speed"]
    context, badges, panels = (
        " · ".join([*sorted(frame["device"].unique()), threads(frame)]),
        kinds(frame["device"]),
        [],
    )
    for benchmark, here in frame[frame["ratio"].notna()].groupby("benchmark", sort=False):
        here = here.assign(label=_speed_labels(here))[["label", "ratio", "arch"]]
        words = {"title": benchmark, "x_label": "speed over yardstick", "mark": 1.0}
        shape = {"width": WIDE, "height": 0.9 + 0.23 * len(here)}
        panels.append(figures.bars(f"ratio-{len(panels)}", here, "ratio", "label", **words, **shape))
    if panels:
        words = "Speed over the yardstick, median of interleaved pairs; above 1 is faster. The table names each yardstick."
        yield Picture("speed.csv", words, context, panels, badges=badges)
    words = "Training benchmark: medians with 20th and 80th percentile, implementations interleaved in one process."
    yield Table("speed.csv", words, context, *results.listing("speed", frame), badges, searchable=len(frame) > 12)


def health(results: Results) -> Iterator:
    """What the sparse layers do while they train."""
    if "health" not in results:
        yield results.missing("health")
        return
    frame = results.joined("health")
    if frame.empty:
        yield Missing("Not measured in this run: health.csv describes none of the runs of the comparison.")
        return
    size = [size for size in results.sizes if (frame["size"] == size).any()][-1]
    here, of_size = frame[frame["size"] == size], results.grid[results.grid["size"] == size]
    layers = here.groupby(["metric", "arch", "step"], as_index=False).agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), run=("run", "first")
    )
    words = {"x_label": "step", "band": ("low", "high")}
    yield Picture(
        "health.csv",
        f"Health of the sparse layers at size {size}: mean over layers (and seeds), shaded from lowest to highest.",
        results.context(of_size),
        [
            figures.curves(f"health-{place}", of_metric, "step", "value", title=metric, y_label=metric, **words)
            for place, (metric, of_metric) in enumerate(layers.groupby("metric"))
        ],
        in_order(here["arch"]),
        kinds(of_size["device"]),
    )
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    last = last.groupby(["size", "arch", "run", "seed", "metric"], as_index=False).agg(value=("value", "mean"))
    metrics, rows = sorted(last["metric"].unique()), []
    for place, size in enumerate(results.sizes):
        for arch in in_order(last.loc[last["size"] == size, "arch"]):
            of_arch = last[(last["size"] == size) & (last["arch"] == arch)]
            cells = [results.mean(of_arch[of_arch["metric"] == metric], "value", "{:.3g}".format) for metric in metrics]
            rows.append([Cell(size, place), arch_cell(arch), *cells])
    done = results.grid[results.grid["run"].isin(last["run"])]
    words = "The same at the last step of every run, mean over layers."
    header = ["size", "architecture", *metrics]
    yield Table("health.csv", words, results.context(done), header, rows, kinds(done["device"]))


def tuning(results: Results) -> Iterator:
    """Equal care for every architecture."""
    if "tuning" not in results:
        yield results.missing("tuning")
        return
    frame = results["tuning"]
    done = results.runs[results.runs["run"].isin(frame["run"])]
    context, badges = results.context(done), kinds(done["device"])
    counts = span(frame.groupby("arch").size(), str)
    yield Text(f"Each architecture was tried with {counts} settings at the smallest size; the presets use the chosen ones.")
    best = frame[frame["val_loss"].notna()].sort_values("val_loss").drop_duplicates(["arch", "lr"])
    if best["lr"].nunique() > 1:
        words = {
            "title": "Best of each rate",
            "x_label": "base learning rate",
            "y_label": "validation loss (nats/token)",
        }
        caption = "Lowest validation loss at each base learning rate, over the other settings."
        drawn = figures.curves("tuning", results.linked(best), "lr", "val_loss", **words, log="x")
        yield Picture("tuning.csv", caption, context, [drawn], in_order(best["arch"]), badges)
    order = {arch: place for place, arch in enumerate(in_order(frame["arch"]))}
    frame = frame.assign(place=frame["arch"].map(order)).sort_values(["place", "val_loss"])
    names = ("arch", "lr", "value_lr_multiplier", "init", "val_loss", "chosen", "run", "setting")
    listing = results.listing("tuning", frame, names)
    yield Table("tuning.csv", "The sweep, best first.", context, *listing, badges, searchable=True, tall=True)


def cost(results: Results) -> Iterator:
    """What it cost to make this report, and what was predicted."""
    yield from _measured_cost(results) if "cost" in results else [results.missing("cost")]
    if "plan" not in results:
        yield results.missing("plan")
        return
    frame = results["plan"]
    header, rows = results.listing("plan", frame)
    measured = results.runs["core_seconds"].astype(float).reindex(frame["run"])
    rows = [[*row, number(value, ".4g")] for row, value in zip(rows, measured, strict=True)]
    words = "The prediction made before anything ran, from a short measured calibration, beside what was measured."
    badges = (*kinds(frame["device"]), "predicted")
    yield Table("plan.csv + runs.csv", words, "", [*header, "measured core_seconds"], rows, badges, searchable=True, tall=True)


def _measured_cost(results: Results) -> Iterator:
    names = ["core_seconds", "tokens", "flops"]
    totals = results["cost"].groupby("target", sort=False)[names].sum(min_count=1).reset_index()
    totals = totals.sort_values("core_seconds", ascending=False)
    context, badges = " · ".join(sorted(results.runs["device"].unique())), kinds(results.runs["device"])
    words = {"title": "Core-seconds by target", "x_label": "core-seconds"}
    shape = {"width": WIDE, "height": 0.9 + 0.28 * len(totals)}
    drawn = figures.bars("cost", totals, "core_seconds", "target", **words, **shape)
    yield Picture("cost.csv", "Processor time by target.", context, [drawn], badges=badges)
    rows = [("all", *totals[names].sum(min_count=1)), *totals[["target", *names]].itertuples(index=False)]
    cells = [[Cell(name), *(Cell(si(value), value, number=True) for value in values)] for name, *values in rows]
    yield Table("cost.csv", "Cost by target.", context, ["target", "core-seconds", "tokens", "FLOPs"], cells, badges)


def data(results: Results) -> Iterator:
    """The corpus, as its meta file describes it."""
    path = results.folder / "data.json"
    if not path.exists():
        yield Missing("Not recorded in this run: data.json is absent (the data stage writes it).")
        return
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path} does not describe a corpus: it holds no names")
    yield Facts([(name, _plain(value)) for name, value in meta.items() if not isinstance(value, dict | list)])
    for name, value in meta.items():
        entries = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            continue
        header = list(dict.fromkeys(title for entry in entries for title in entry))
        rows = [[Cell(_plain(entry.get(title, "–")), title=str(entry.get(title, ""))) for title in header] for entry in entries]
        if isinstance(value, dict):
            header, rows = ["", *header], [[Cell(title), *row] for title, row in zip(value, rows, strict=True)]
        yield Table("data.json", f"Corpus: {name}.", "", header, rows)


def provenance(results: Results) -> Iterator:
    """Every run with everything that made it."""
    if "runs" not in results:
        yield results.missing("runs")
        return
    header, rows = results.listing("runs", results.runs)
    rows = [[Cell(row[0].text, id=figures.anchor(row[0].text)), *row[1:]] for row in rows]
    words = "One row a run, written by the worker that trained it. Hashes are cut to ten digits; hover for the whole."
    yield Table("runs.csv", words, "", header, rows, kinds(results.runs["device"]), searchable=True, tall=True)


SECTIONS = (
    ("summary", "At a glance", summary),
    ("claims", "Claims ledger", claims),
    ("losses", "Loss at matched compute", losses),
    ("scaling", "Loss against cost", scaling),
    ("ablations", "Ablations", ablations),
    ("evaluations", "Evaluation", evaluations),
    ("latency", "Latency", latency),
    ("access", "Memory access", access),
    ("matched", "Matched compute", matched),
    ("speed", "Training speed", speed),
    ("health", "Health of sparse layers", health),
    ("tuning", "Equal tuning", tuning),
    ("cost", "Cost ledger", cost),
    ("data", "Data", data),
    ("provenance", "Provenance", provenance),
)


def _plain(value) -> str:
    return f"{value:,}".replace(",", "\u202f") if type(value) is int else str(value)


def _score(results: Results, scores: pd.DataFrame, best: bool) -> Cell:
    """A mean over seeds; of a single seed, the value ± its standard error."""
    cell = results.mean(scores, "value", strong=bool(best))
    if len(scores) != 1 or pd.isna(scores["stderr"].iloc[0]):
        return cell
    return Cell(f"{cell.text} ± {scores['stderr'].iloc[0]:.3f}", cell.sort, cell.href, cell.title, True, cell.strong)


def _agreement(ours: float, paper: float) -> Cell:
    """Whether the signs of two changes agree; nothing where one is missing or zero."""
    if pd.isna(ours) or pd.isna(paper) or not ours * paper:
        return Cell("–")
    word = "same" if ours * paper > 0 else "opposite"
    return Cell(word, kind=word)


def _by_source(results: Results) -> dict[str, pd.DataFrame]:
    """The last validation loss of every run, by source."""
    if "train" not in results:
        return {}
    frame = results["train"]
    frame = frame[(frame["split"] == "validation") & ~frame["source"].isin(["", "all"])]
    frame = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    return {source: rows[["run", "loss"]] for source, rows in frame.groupby("source")}


def _thinned(frame: pd.DataFrame, points: int = 120) -> pd.DataFrame:
    """At most `points` a run; a longer curve is first smoothed by a running median over 1/40 of it."""
    parts = []
    for _, line in frame.groupby("run"):
        line = line.sort_values("tokens")
        if len(line) > points:
            smooth = line["loss"].rolling(max(1, len(line) // 40), center=True, min_periods=1).median()
            line = line.assign(loss=smooth).iloc[:: -(-len(line) // points)]
        parts.append(line)
    return pd.concat(parts)


def _loss_against(results: Results, name: str, column: str, words: str, title: str) -> figures.Panel:
    values = {
        "loss": ("val_loss", "mean"),
        "low": ("val_loss", "min"),
        "high": ("val_loss", "max"),
        "run": ("run", "first"),
    }
    frame = results.grid.groupby(["arch", "size"], as_index=False).agg(**{column: (column, "mean")}, **values)
    labels = {"title": title, "x_label": words, "y_label": "validation loss (nats/token)"}
    return figures.curves(name, frame[frame[column].notna()], column, "loss", **labels, log="x", band=("low", "high"))


def _chain(results: Results, name: str) -> pd.DataFrame:
    """One chain with the losses of its runs; `delta` against the previous row, or the base where arms do not add up."""
    chain = results["arms"][results["arms"]["chain"] == name].sort_values("order")
    chain = chain.merge(results.runs[["train_loss", "val_loss"]], left_on="run", right_index=True, how="left")
    cumulative = chain["kind"].iloc[-1] == "cumulative"
    before = chain["val_loss"].shift() if cumulative else chain["val_loss"].iloc[0]
    return chain.assign(delta=(chain["val_loss"] - before).where(chain["order"] != chain["order"].min()))


def _cumulative(results: Results) -> Iterator[tuple[str, pd.DataFrame]]:
    """The cumulative chains of which at least two rows have a loss."""
    for name in dict.fromkeys(results["arms"]["chain"]) if "arms" in results else ():
        chain = _chain(results, name)
        if chain["kind"].iloc[-1] == "cumulative" and chain["val_loss"].notna().sum() > 1:
            yield name, chain


def _waterfall(name: str, title: str, chain: pd.DataFrame) -> figures.Panel:
    chain = chain[chain["val_loss"].notna()]
    rows = (list(chain["label"]), list(chain["val_loss"]), list(chain["run"]))
    return figures.waterfall(name, *rows, title=title, width=WIDE, height=1.0 + 0.26 * len(chain))


def _speed_labels(frame: pd.DataFrame) -> list[str]:
    """A name for each row from the columns in which the rows differ."""
    words = {
        "impl": frame["impl"],
        "arch": frame["arch"].map(lambda arch: look(arch).label if arch else ""),
        "d_model": "d " + frame["d_model"].astype(str),
        "tokens": frame["tokens"].astype(str) + " tokens",
        "precision": frame["precision"],
        "threads": frame["threads"].astype(str) + " thr",
    }
    differ = [column for column in words.values() if column.nunique() > 1] or [words["impl"]]
    return [" ".join(part for part in row if part and "<NA>" not in part) for row in zip(*differ, strict=True)]


def _latency_panels(results: Results, name: str) -> Iterator[tuple[str, figures.Panel, tuple[str, ...]]]:
    """(kind, panel, badges) for each setting that was timed, measured before modelled, whole model before its part."""
    if "latency" not in results:
        return
    frame = results.linked(results["latency"].astype({"threads": "float64"}))
    where = ["kind", "device", "part", "phase", "size", "context", "kv", "dtype", "threads"]
    groups = sorted(frame.groupby(where, dropna=False), key=lambda item: (item[0][0], item[0][1], item[0][2] != "model"))
    for place, (setting, here) in enumerate(groups):
        kind, device, part, phase, size, context, kv, dtype, n_threads = setting
        words = f"{kind}, {device}, {dtype}, KV {kv} {context}" + ("" if pd.isna(n_threads) else f", {n_threads:.0f} thr")
        title = f"{phase.capitalize()} step, {size}, {'whole model' if part == 'model' else 'FFN and memory'}\n"
        band = None if here[["p20_ms", "p80_ms"]].isna().any(axis=None) else ("p20_ms", "p80_ms")
        common = {
            "title": title + textwrap.fill(words, 44),
            "y_label": "ms a step",
            "log": "xy",
            "band": band,
            "height": 2.9,
        }
        widest = here.groupby(["arch", "sparse_ratio"], as_index=False)["batch"].nunique()
        widest = widest.sort_values(["batch", "sparse_ratio"]).drop_duplicates("arch", keep="last")
        at = here.merge(widest[["arch", "sparse_ratio"]])
        if at["batch"].nunique() > 1:
            drawn = figures.curves(f"{name}-batch-{place}", at, "batch", "p50_ms", x_label="batch", **common)
            yield kind, drawn, (*kinds([device]), kind)
        ratios = here.groupby("batch")["sparse_ratio"].nunique()
        if ratios.max() > 2:
            at = here[here["batch"] == ratios.idxmax()]
            several = at.groupby("arch")["sparse_ratio"].transform("nunique") > 1
            labels = {"x_label": f"sparse over activated parameters, batch {ratios.idxmax()}", "levels": at[~several]}
            drawn = figures.curves(f"{name}-ratio-{place}", at[several], "sparse_ratio", "p50_ms", **labels, **common)
            yield kind, drawn, (*kinds([device]), kind)
