"""The columns of every CSV, and the only code that writes, reads or joins them.

One row is one point. Units are in the doc of each column and, where a reader could guess wrong, in its name. A missing
value is an empty cell, never 0. `run` is the key between tables; where a run came from stands only in `runs`, where the
tables of results/reference came from in `provenance`.

`python -m evals.records.schema results/README.md` rewrites the tables of columns in that file.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import numbers
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evals.records.errors import UserError, run


@dataclass(frozen=True)
class Column:
    """`dtype` is str, int, float or bool; a `required` cell is never empty; `choices` are the words allowed, if any."""

    name: str
    dtype: type
    unit: str
    doc: str
    required: bool = True
    choices: tuple[str, ...] = ()

    def parse(self, cell: str):
        """The value of a cell as `format`, pandas, R or a spreadsheet write it; None where it is missing.

        Raises:
            ValueError: what is wrong with the cell.
        """
        if cell in MISSING:
            if self.required:
                raise ValueError(f"{self.name} is {f'{cell!r}, a missing value' if cell else 'empty'}")
            return None
        if self.choices and cell not in self.choices:
            raise ValueError(f"{self.name} is {cell!r}, allowed: {', '.join(self.choices)}")
        try:
            value = READ[self.dtype](cell)
        except (ValueError, KeyError):
            value = math.nan
        if value != value:
            raise ValueError(f"{self.name} is {cell!r}, not {WORDS[self.dtype]}")
        return value

    def format(self, value) -> str:
        """The cell for a value: floats in their shortest exact form; None and NaN are missing values."""
        if value is None or value is pd.NA or (isinstance(value, numbers.Real) and math.isnan(value)):
            text = ""
        elif self.dtype is bool and type(value).__name__ in ("bool", "bool_"):
            text = str(bool(value)).lower()
        elif self.dtype is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            text = str(int(value))
        elif self.dtype is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            text = repr(float(value))
        elif self.dtype is str and isinstance(value, str):
            text = value
        else:
            raise ValueError(f"{self.name} is {value!r}, not {WORDS[self.dtype]}")
        if self.parse(text) is None and text:
            raise ValueError(f"{self.name} is {text!r}, which reads back as a missing value")
        return text


def _whole(cell: str) -> int:
    """Also of 3.0 and 1e+05, as far as a float holds every whole number."""
    try:
        return int(cell)
    except ValueError:
        value = float(cell)
        if not value.is_integer() or abs(value) > 2**53:
            raise
        return int(value)


WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
MISSING = frozenset(("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"))
BOOLS = {"true": True, "t": True, "1": True, "1.0": True, "false": False, "f": False, "0": False, "0.0": False}
READ = {str: str, int: _whole, float: float, bool: lambda cell: BOOLS[cell.lower()]}
ROW_NAMES = ("", "Unnamed: 0")  # the header of R's row names and of pandas' index, and of the latter read back


def _text(name: str, doc: str, required: bool = True, choices: tuple[str, ...] = ()) -> Column:
    return Column(name, str, "", doc, required, choices)


def _int(name: str, unit: str, doc: str, required: bool = True) -> Column:
    return Column(name, int, unit, doc, required)


def _float(name: str, unit: str, doc: str, required: bool = True) -> Column:
    return Column(name, float, unit, doc, required)


def _bool(name: str, doc: str, required: bool = True) -> Column:
    return Column(name, bool, "", doc, required)


def _percentiles(what: str) -> tuple[Column, ...]:
    names = ((20, "20th percentile"), (50, "median"), (80, "80th percentile"))
    return tuple(_float(f"p{p}_ms", "ms", f"{word} of {what}", required=p == 50) for p, word in names)


RUN = _text("run", "id of the run, the key into `runs`")
ARCH = _text("arch", "architecture: a name of the table in `models`")
DEVICE = _text("device", "kind first: `CPU: …` or `CUDA: …`; a modelled row names the modelled one")

TABLES: dict[str, tuple[Column, ...]] = {
    "runs": (
        _text("run", "id of the run: architecture, size, delta if any, seed"),
        _text("preset", "preset that asked for the run"),
        ARCH,
        _text("size", "name of the size in the preset"),
        _int("seed", "", "seed the other three are derived from"),
        _int("d_model", "", "width of the residual stream"),
        _int("n_layers", "", "number of blocks"),
        _int("params", "parameters", "stored, embedding left out"),
        _int("active_params", "parameters", "used for one token, embedding left out"),
        _int("sparse_params", "parameters", "in experts or value tables, of which a token reads a part"),
        _float("flops_per_token", "FLOPs", "forward pass: twice the activated parameters, embedding left out"),
        _float("compute_share_memory", "fraction", "retrieval and projections in feed-forward plus memory FLOPs", False),
        _int("tokens", "tokens", "trained on", False),
        _int("steps", "steps", "optimizer steps taken", False),
        _float("train_loss", "nats/token", "training cross-entropy at the end, without auxiliary losses", False),
        _float(
            "val_loss", "nats/token", "validation cross-entropy at the end, headline sources; recipes are chosen by it", False
        ),
        _float("val_bpb", "bits/byte", "the same per byte of text", False),
        _float("test_loss", "nats/token", "test cross-entropy at the end, headline sources; this is what is reported", False),
        _float("test_bpb", "bits/byte", "the same per byte of text", False),
        _float("tokens_per_s", "tokens/s", "median over training steps", False),
        _float("core_seconds", "core s", "processor time of the run, all threads, all resumptions", False),
        _float("wall_s", "s", "wall-clock time of the run, all resumptions", False),
        _float("peak_rss_mb", "MB", "largest resident memory", False),
        _text("precision", "arithmetic of the matrix products: `fp32` or `bf16`"),
        _text(
            "value_optimizer", "AdamW of value tables: every row each step, or rows that were read", False, ("dense", "rows")
        ),
        _int("threads", "threads", "of the trainer"),
        DEVICE,
        _text("status", "`finished`, or why not"),
        _text("config_sha", "hash of the resolved config"),
        _text("source_sha", "fingerprint of the source files the architecture uses"),
        _text("git_commit", "commit of the checkout; empty outside git", False),
        _bool("git_dirty", "whether the checkout held uncommitted changes", False),
        _text("data_sha", "hash of the token shards"),
        _int("seed_data", "", "seed of the order of the data, the same for every architecture"),
        _int("seed_init", "", "seed of the initialisation"),
        _int("seed_rest", "", "seed of everything else"),
        _text("python", "version"),
        _text("torch", "version"),
        _text("started", "start of the first attempt, ISO 8601 UTC"),
        _text("ended", "end of the last attempt, ISO 8601 UTC", False),
        _int("resumed", "times", "the run was continued from a checkpoint"),
        _text("host_os", "operating system and machine type"),
    ),
    "train": (
        RUN,
        _int("step", "", "optimizer step, 0 before the first"),
        _int("tokens", "tokens", "trained on so far"),
        _text(
            "split",
            "`validation` is the curve, the same windows each time; the last two are the finished model's, on all windows",
            choices=("train", "validation", "validation-final", "test"),
        ),
        _text("source", "empty for train; else a source of the corpus, or `all`: the headline sources", False),
        _float("loss", "nats/token", "cross-entropy"),
        _float("aux_loss", "nats/token", "sum of the auxiliary losses, weighted", False),
        _float("lr", "", "learning rate of the base parameters", False),
        _float("grad_norm", "", "norm of the gradient before clipping", False),
        _float("tokens_per_s", "tokens/s", "since the last row", False),
        _float("elapsed_s", "s", "of training so far", False),
    ),
    "matched_compute": (
        _text("preset", "preset the size belongs to"),
        _text("size", "name of the size in the preset"),
        ARCH,
        _text("role", "held to the budget, or shown beside it", choices=("matched", "comparator")),
        _int("d_ff", "", "inner width of the feed-forward", False),
        _int("d_expert", "", "inner width of one expert", False),
        _int("n_experts", "", "experts of one layer", False),
        _int("top_k", "", "experts (per token) or values (per head) read", False),
        _int("n_keys", "", "keys per axis of a product-key table", False),
        _int("d_key", "", "width of one half-key", False),
        _int("d_value", "", "width of one stored value", False),
        _int("params", "parameters", "stored, embedding left out"),
        _int("active_params", "parameters", "used for one token, embedding left out"),
        _int("sparse_params", "parameters", "in experts or value tables"),
        _float("flops_per_token", "FLOPs", "forward pass"),
        _float("head_flops", "FLOPs", "of the output head for one token, which the papers' definition leaves out", False),
        _float("selection_flops", "FLOPs", "of choosing picks by their scores, which it leaves out too", False),
        _float("flops_mismatch", "fraction", "flops_per_token over the budget, minus 1"),
        _float("params_mismatch", "fraction", "params over the target, minus 1; empty for dense", False),
        _float("memory_share", "fraction", "retrieval and projections in feed-forward plus memory FLOPs", False),
        _float("bytes_b1", "bytes", "weights read by one token, expected", False),
        _float("bytes_b64", "bytes", "weights read by 64 tokens together, expected under uniform routing", False),
        _bool("trained", "whether the preset trains this row"),
    ),
    "arms": (
        _text("chain", "name of the ablation"),
        _text("kind", "how an arm is made from the base", choices=("cumulative", "leave-one-out", "sweep")),
        _text("step", "id of the arm within its chain"),
        _int("order", "", "position in the chain, 0 for the base"),
        _text("label", "what the paper calls it"),
        _text("set", "the config delta of this step alone, JSON"),
        _float("lr", "", "base learning rate: the best of those tried, by validation loss", False),
        _text("tried", "rates that the row was trained with and their mean validation losses, JSON; empty if one", False),
        RUN,
        _float("paper_train_loss", "nats/token", "published", False),
        _float("paper_val_loss", "nats/token", "published", False),
        _float(
            "paper_delta_val",
            "nats/token",
            "published change, against the previous row (cumulative) or the base",
            False,
        ),
    ),
    "health": (
        RUN,
        _int("step", "", "optimizer step"),
        _int("layer", "", "block, from 0"),
        _text("metric", "e.g. share of values used, KL from uniform, recall@m"),
        _float("value", "", "of the metric"),
    ),
    "tuning": (
        ARCH,
        _text("size", "name of the size in the preset"),
        _int("d_model", "", "width of the residual stream"),
        _text("setting", "the whole setting, JSON"),
        _float("lr", "", "base learning rate"),
        _float("weight_decay", "", "of the weights that decay"),
        _float("value_lr_multiplier", "", "learning rate of the value tables over the base", False),
        _text("init", "initialisation variant", False),
        _int("seed", "", "of the run"),
        RUN,
        _float("val_loss", "nats/token", "validation cross-entropy at the end", False),
        _bool(
            "chosen", "whether the presets use it: of the settings within 0.02 of the lowest loss the best at the lowest rate"
        ),
        _bool(
            "edge", "whether it is chosen (at other sizes: the best) and a knob of it is the smallest or largest that was tried"
        ),
    ),
    "speed": (
        _text("benchmark", "what is timed"),
        _text("impl", "whose code: `ours` or a peer"),
        _text("arch", "architecture, where one applies", False),
        _int("d_model", "", "width of the residual stream", False),
        _int("tokens", "tokens", "per call", False),
        _int("threads", "threads", "used"),
        _text("precision", "`fp32` or `bf16`"),
        *_percentiles("one call"),
        _float("tokens_per_s", "tokens/s", "at the median", False),
        _float("ratio", "", "speed over that of `versus`, median of interleaved pairs; above 1 is faster", False),
        _text("versus", "yardstick of the ratio", False),
        _int("n_iters", "", "timed calls"),
        DEVICE,
    ),
    "evals": (
        RUN,
        _text("task", "name of the task"),
        _text("metric", "`gold_bpb`: bits per byte of the right answer; `acc`, `len_norm`: share of right answers; others"),
        _int("n_shot", "", "examples in the prompt"),
        _int("n", "items", "scored"),
        _float("value", "", "of the metric"),
        _float("stderr", "", "standard error over the items", False),
        _float(
            "chance",
            "",
            "value of a blind guess, of a memory task that of the best rule without memory; where it is known",
            False,
        ),
        _bool("higher_is_better", "direction of the metric"),
        _bool("primary", "whether the task is judged by this metric; one is, but for lm-eval's own versions of tasks"),
    ),
    "latency": (
        _text("run", "run whose weights were timed; empty if modelled or at initialisation", False),
        ARCH,
        _text("size", "name of the size, ours or a paper's"),
        _text("phase", "`decode` or `prefill`"),
        _text("part", "whole model, or feed-forward and memory only", choices=("model", "ffn")),
        _text(
            "variant",
            "`overlap`: memories run beside later blocks; `folded`: expansion projected in advance",
            choices=("plain", "overlap", "folded"),
        ),
        _int("batch", "sequences", "in flight"),
        _int("context", "tokens", "already in each sequence's cache"),
        _text("kv", "key-value cache: `none`, `mha` or `gqa`"),
        _float("sparse_ratio", "", "total (ours) or sparse (the papers') over activated parameters; 0 of a dense model"),
        _text("dtype", "of weights and activations"),
        _int("threads", "threads", "of a CPU measurement", False),
        *_percentiles("one step"),
        _int("n_iters", "", "timed steps; empty if modelled", False),
        _float("bytes_declared", "bytes", "the cost formula's weights and cache read by one step", False),
        _float("bytes_counted", "bytes", "the same with the experts and rows that the timed inputs asked for", False),
        _float("predicted_ms", "ms", "roofline of the counted bytes on the bandwidth and products of `machine`", False),
        _text("kind", "how the time was obtained", choices=("measured", "modelled")),
        DEVICE,
    ),
    "access": (
        _text("run", "run whose config was declared or routing counted; for a paper's model its name"),
        ARCH,
        _text("size", "name of the size, ours or a paper's"),
        _text("part", "whole model, or feed-forward and memory only", choices=("model", "ffn")),
        _text("kv", "key-value cache counted in: `none`, `mha` or `gqa`", choices=("none", "mha", "gqa")),
        _int("context", "tokens", "in each sequence's cache; 0 without one"),
        _text("dtype", "of weights and cache"),
        _int("layer", "", "block, from 0; empty for the sum over the model", False),
        _int("batch", "tokens", "in one step"),
        _text(
            "routing",
            "`worst`, `uniform`, `zipf`, `trained` (a checkpoint on validation text) or `untrained` (at initialisation)",
        ),
        _text(
            "kind",
            "formula, counted indices, or the GPU's own counter",
            choices=("declared-worst", "declared-expected", "counted", "hardware"),
        ),
        _float("rows_read", "rows", "of experts or values, repeats counted", False),
        _float("rows_unique", "rows", "repeats not counted", False),
        _float("bytes", "bytes", "of weights, and of the cache where one is counted in, read by the step"),
        _text("device", "whose counter it is; empty where nothing ran on a device", False),
    ),
    "machine": (
        DEVICE,
        _text("dtype", "of the data"),
        _int("threads", "threads", "of a CPU measurement", False),
        _text(
            "quantity",
            "sequential reads, gathered rows, matrix products of `rows` rows with warm weights, or a kernel launch",
            choices=("read", "gather", "matmul", "launch"),
        ),
        _int("rows", "rows", "of the product's left side, or bytes of one gathered row", False),
        _float("value", "", "median"),
        _text("unit", "of the value: `bytes/s`, `FLOPs/s` or `s`"),
    ),
    "claims": (
        _text("id", "of the claim"),
        _text("paper", "`P1` UltraMem, `P2` UltraMemV2, or `blog`"),
        _text("kind", "what could show it", choices=("arithmetic", "trained", "measured", "modelled")),
        _text("test", "claim whose measurement it shares; its own id if none"),
        _text("statement", "in our words"),
        _text("source", "table, figure or page"),
        _text("published", "value as published", False),
        _text("metric", "expression over the tables", False),
        _float("value", "", "ours", False),
        _float("ci_low", "", "lower end of the 95 % interval", False),
        _float("ci_high", "", "upper end of the 95 % interval", False),
        _int("n", "", "pairs, seeds or points behind the value", False),
        _int("n_needed", "seeds", "that would show the claimed effect in 80 % of cases at the observed seed noise", False),
        _text(
            "verdict",
            "ruled by `evals.claims.ledger`",
            choices=(
                "reproduced",
                "direction only",
                "not reproduced",
                "inconclusive",
                "underpowered",
                "ambiguous",
                "confounded",
                "modelled against",
                "not tested",
            ),
        ),
        _text("reason", "for the verdict"),
        _text("scale", "largest scale that was run for it", False),
        _text("runs", "ids of the runs behind the value, apart by blanks", False),
    ),
    "plan": (
        RUN,
        ARCH,
        _text("size", "name of the size in the preset"),
        _int("tokens", "tokens", "to train on"),
        _int("workers", "", "data-parallel processes of the run, each on a GPU of its own where there are GPUs"),
        _float("predicted_core_s", "core s", "predicted, never measured; GPU seconds, of all workers, on CUDA"),
        _float("predicted_wall_s", "s", "the same over the workers"),
        _float("predicted_disk_mb", "MB", "predicted size of weights and checkpoint"),
        _float(
            "predicted_memory_mb", "MB", "per GPU: weights, gradients, moments, activations; empty without a named GPU", False
        ),
        _float("device_memory_mb", "MB", "that a GPU of this kind has; empty without a named GPU", False),
        _bool("fits", "whether nine tenths of the GPU's memory hold the run; empty without a named GPU", False),
        _float(
            "utilisation",
            "fraction",
            "share of the GPU's peak that is assumed, of evals/decode/gpus.yaml; empty if timed",
            False,
        ),
        _text("calibrated_on", "run whose steps were timed, or what gives the assumed share of the peak"),
        DEVICE,
    ),
    "provenance": (
        _text("table", "name of the CSV in `results/reference`, without its ending"),
        _text(
            "producer", "stage whose code makes it (evals/records/provenance.py), and files; `training` is what trains a run"
        ),
        _text("commit", "commit of the code that made it"),
        _bool("dirty", "whether that checkout held uncommitted changes"),
        _text("date", "day of the measurement, ISO 8601"),
        DEVICE,
        _text("source", "fingerprint of the producer's code then; empty where it was not recorded", False),
        _text("sha256", "of the file"),
        _text("reason", "why it is kept although its producer has changed since; empty if it has not", False),
        _text("reviewed", "fingerprint of the changed code that the reason is about; empty: it is stale and says so", False),
    ),
    "cost": (
        _text("target", "stage or target of the workflow"),
        _text("run", "run, or batch of runs, it was spent on, if one", False),
        _float("core_seconds", "core s", "processor time"),
        _float("tokens", "tokens", "processed", False),
        _float("flops", "FLOPs", "by the cost formula; training counts three forward passes", False),
    ),
    "diagnosis": (
        _text("topic", "chain of the arms; its name begins with `diagnosis_`"),
        _text("question", "what its arms ask", False),
        _text("arm", "id of the arm within its chain"),
        _text("label", "of the arm, in words"),
        _int("n", "seeds", "behind the loss"),
        _float("loss", "nats/token", "test loss, mean over seeds", False),
        _float("delta", "nats/token", "loss minus that of the topic's base arm, paired by seed; empty for the base", False),
        _float("ci_low", "nats/token", "lower end of the 95 % t interval of delta; empty with one seed", False),
        _float("ci_high", "nats/token", "upper end of it", False),
        _text("verdict", "`open` until someone wrote a reading", choices=("bug mended", "finding", "open")),
        _text("reading", "what the arms say, one sentence", False),
        _text("runs", "ids of the runs behind the loss, apart by blanks"),
    ),
    "coordinates": (
        ARCH,
        _text("width_rule", "learning rates of hidden matrices over width, or equal ones", choices=("scaled", "flat")),
        _int("d_model", "", "width of the residual stream"),
        _int("step", "", "optimizer steps taken"),
        _text("where", "`embedding`, `attention.I`, `ffn.I`, `memory.I` (I: block, from 0), `residual` or `logits`"),
        _float("value", "", "root mean square of the activation"),
    ),
}


def columns(table: str) -> tuple[Column, ...]:
    """The columns of a table; ValueError names the tables that exist."""
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: evals/records/schema.py has {', '.join(TABLES)}")
    return TABLES[table]


def write(path: str | Path, table: str, rows: Iterable[Mapping] | pd.DataFrame) -> None:
    """Check `rows` (mappings, or a frame) against the table, then write them so that `path` is whole or untouched.

    A column left out of a row is a missing value. ValueError names the row and column that do not fit.
    """
    schema = columns(table)
    names = {column.name for column in schema}
    if isinstance(rows, pd.DataFrame):
        rows = rows.astype(object).to_dict("records")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in schema)
    for number, row in enumerate(rows, 1):
        if unknown := set(row) - names:
            raise ValueError(f"row {number} for {path} has {_names(unknown)}, which table {table!r} does not have")
        try:
            writer.writerow([column.format(row.get(column.name)) for column in schema])
        except ValueError as error:
            raise ValueError(f"row {number} for {path} does not fit table {table!r}: {error}") from None
    _replace(Path(path), text.getvalue())


def _replace(path: Path, text: str) -> None:
    """Write a file that is whole or untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8", newline=""
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read(path: str | Path, table: str) -> pd.DataFrame:
    """The table as a frame: int64 (Int64 where cells are missing), float64, bool (boolean), and str ("" if missing).

    What pandas, R and spreadsheets make of a file of `write` is read as the file itself: their words for booleans and
    missing values, whole numbers written as floats, quotes, a byte order mark, CRLF, blank lines, row names in front, and
    columns in another order (the frame has them in the schema's). What such a program changed is beyond repair: R writes
    15 digits, and text that looks like a number (007) may come back as one.

    UserError, in one sentence, for a file that is missing, cut short, of another table, or holds a cell that does not
    parse. A file cut exactly at the end of a line cannot be told from a shorter one.
    """
    schema = columns(table)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes table {table!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a CSV of table {table!r}: {error}") from None
    if not text.endswith("\n"):
        raise UserError(f"{path} is cut short: its last line has no end; delete it and run its stage again")
    lines = csv.reader(io.StringIO(text), strict=True)
    names = [column.name for column in schema]
    cells = {name: [] for name in names}
    try:
        header = next(lines)
        first = int(header[:1] != [] and header[0] in ROW_NAMES)
        if sorted(header[first:]) != sorted(names):
            raise UserError(f"{path} is not a CSV of table {table!r}: {_difference(header[first:], names)}")
        order = [schema[names.index(name)] for name in header[first:]]
        for row in filter(None, lines):
            if len(row) != len(header):
                raise UserError(f"{path} line {lines.line_num} has {len(row)} cells, its header has {len(header)}")
            for column, cell in zip(order, row[first:], strict=True):
                cells[column.name].append(column.parse(cell))
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num} is not CSV: {error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} line {lines.line_num} does not fit table {table!r}: {error}") from None
    return pd.DataFrame({column.name: _series(column, cells[column.name]) for column in schema})


def gather(paths: Iterable[str | Path], table: str, out: str | Path) -> None:
    """Join files of one table into `out`, in the order given; errors as `read`."""
    write(out, table, [row for path in paths for row in read(path, table).astype(object).to_dict("records")])


MANIFEST = "manifest.json"


def seal(folder: Path, tables: Iterable[str]) -> None:
    """Note sha256 and number of rows of `tables`, just written to `folder`, in its manifest.json."""
    folder = Path(folder)
    with (folder / f".{MANIFEST}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # stages that run side by side each note theirs
        path = folder / MANIFEST
        manifest = json.loads(path.read_text()) if path.exists() else {}
        for table in tables:
            content = (folder / f"{table}.csv").read_bytes()
            rows = len(read(folder / f"{table}.csv", table))
            manifest[table] = {"sha256": hashlib.sha256(content).hexdigest(), "rows": rows}
        _replace(path, json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def check_seal(folder: Path) -> None:
    """Compare the tables of `folder` with its manifest.json; without one there is nothing to compare.

    Raises:
        UserError: a table is missing or not as it was written; or the manifest is no JSON.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text()) if path.exists() else {}
        expected = {table: entry["sha256"] for table, entry in manifest.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: run python -m workflows.gather {folder} again") from None
    for table, sha256 in expected.items():
        file = Path(folder) / f"{table}.csv"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise UserError(
                f"{file} is missing or was changed after it was gathered from the runs (its sha256 is not that of {MANIFEST}): "
                f"delete both files and run snakemake again"
            )


def markdown() -> str:
    """Every column of every table, for results/README.md."""
    parts = []
    for table, schema in TABLES.items():
        parts += [f"### {table}.csv", "", "| column | type | unit | empty? | meaning |", "|---|---|---|---|---|"]
        for column in schema:
            words = f": {', '.join(f'`{word}`' for word in column.choices)}" if column.choices else ""
            empty = "no" if column.required else "may be"
            parts.append(f"| `{column.name}` | {column.dtype.__name__} | {column.unit} | {empty} | {column.doc}{words} |")
        parts.append("")
    return "\n".join(parts)


MARK = "<!-- columns: written by `python -m evals.records.schema results/README.md` -->\n"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        raise UserError("usage: python -m evals.records.schema results/README.md")
    path = Path(arguments[0])
    try:
        head, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not mark:
        raise UserError(f"{path} does not hold the line {MARK.strip()!r} that the tables follow")
    path.write_text(head + MARK + "\n" + markdown(), encoding="utf-8")


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _difference(header: list[str], names: list[str]) -> str:
    missing, unknown = set(names) - set(header), set(header) - set(names)
    words = [f"it lacks {_names(missing)}"] * bool(missing) + [f"it has {_names(unknown)}"] * bool(unknown)
    return " and ".join(words) or "a column is repeated"


def _series(column: Column, values: list) -> pd.Series:
    if column.dtype is str:
        return pd.Series([value or "" for value in values], dtype=str)
    missing = any(value is None for value in values)
    dtype = {int: ("int64", "Int64"), float: ("float64", "float64"), bool: ("bool", "boolean")}[column.dtype][missing]
    return pd.Series(values, dtype=dtype)


if __name__ == "__main__":
    run(main)
