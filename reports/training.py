"""What training gave and took: losses, matched compute, speed, health of the sparse layers, tuning."""

from collections.abc import Iterator

import pandas as pd

from reports import figures
from reports.figures import WIDE, in_order, key, look, si
from reports.page import Cell, Missing, Picture, Results, Table, Text, arch_cell, kinds, number, span, threads


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
    yield from _benchmark(results)
    yield from _peers(results)


def _benchmark(results: Results) -> Iterator:
    if "speed" not in results:
        yield results.missing("speed")
        return
    frame, panels = results["speed"], []
    context, badges = " · ".join([*sorted(frame["device"].unique()), threads(frame)]), kinds(frame["device"])
    for benchmark, here in frame[frame["ratio"].notna()].groupby("benchmark", sort=False):
        here = here.assign(label=_speed_labels(here))[["label", "ratio", "arch"]]
        words = {"title": benchmark, "x_label": "speed over yardstick", "mark": 1.0}
        shape = {"width": WIDE, "height": 0.9 + 0.23 * len(here)}
        panels.append(figures.bars(f"ratio-{len(panels)}", here, "ratio", "label", **words, **shape))
    if panels:
        words = "Speed over the yardstick, median of interleaved pairs; above 1 is faster. The table names each yardstick."
        yield Picture("speed.csv", words, context, panels, badges=badges)
    words = "Training benchmark: medians with 20th and 80th percentile, implementations interleaved in one process."
    yield Table("speed.csv", words, context, *results.listing("speed", frame), badges, searchable=len(frame) > 12, tall=True)


def _peers(results: Results) -> Iterator:
    """Other public implementations of the same layers beside ours."""
    if "peers" not in results:
        yield results.missing("peers")
        return
    frame, rows = results["peers"], []
    where = ["benchmark", "arch", "d_model", "tokens", "threads", "precision", "device"]
    ours = frame[frame["impl"] == "ours"][[*where, "p50_ms"]]
    for row in frame.merge(ours, on=where, how="left", suffixes=("", "_ours")).itertuples():
        about = [Cell(row.benchmark), Cell(row.impl), arch_cell(row.arch), number(row.d_model, "d"), number(row.tokens, "d")]
        times = [number(value, ".3g") for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
        rows.append(
            [*about, Cell(row.precision), *times, number(row.p50_ms / row.p50_ms_ours, ".2f"), number(row.n_iters, "d")]
        )
    header = ["benchmark", "implementation", "architecture", "d_model", "tokens", "precision", "p20 ms", "median ms", "p80 ms"]
    context = " · ".join([*sorted(frame["device"].unique()), threads(frame)])
    words = (
        "Public implementations of the same layers beside ours, interleaved in one process. Time over ours: above 1 ours is "
    )
    words += "faster."
    header += ["time over ours", "calls"]
    yield Table("peers.csv", words, context, header, rows, kinds(frame["device"]), searchable=True, tall=True)


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
