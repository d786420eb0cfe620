"""Two small results folders that are equal, or differ in one thing, and what the comparison finds in them."""

from synthetic import chain_runs, grid_run, row, write

from evals import compare
from evals.records import schema


def timing(arch, p50, **values):
    times = {
        "variant": "plain",
        "bytes_counted": 1e6,
        "p20_ms": p50,
        "p50_ms": p50,
        "p80_ms": p50,
        "n_iters": 20,
        "bytes_declared": 1e6,
        "run": "",
    }
    how = {"phase": "decode", "part": "model", "kind": "measured", "device": "CPU: made up", "batch": 16, "threads": 1}
    return row("latency", **(times | how | {"arch": arch, "sparse_ratio": 0.0 if arch == "dense" else 12.0} | values))


def folder(path, hardware="CPU: made up", shift=0.0, **replaced):
    """A small results folder; `shift` moves every loss, `replaced` gives whole tables."""
    grid = [grid_run(a, seed=s, val_loss=4 + s / 10 + shift, device=hardware) for a in ("dense", "ultramem") for s in (0, 1)]
    runs, arms = chain_runs("c", {"base": [4.2 + shift], "+x": [4.1 + shift]}, device=hardware)
    tables = {
        "runs": grid + runs,
        "arms": arms,
        "train": [row("train", run="dense-s-s0", step=i, split="train", loss=5.0 - i + shift) for i in range(3)],
        "evals": [row("evals", run="dense-s-s0", task="t", metric="acc", n=100, value=0.5, stderr=0.05)],
        "access": [
            row("access", run="ultramem-s-s0", layer=None, batch=16, routing="uniform", bytes=1000.0),
            row("access", run="ultramem-s-s0", layer=None, batch=16, routing="trained", kind="counted", bytes=900.0),
        ],
        "latency": [timing("dense", 2.0, device=hardware), timing("ultramem", 3.0, device=hardware)],
        "machine": [row("machine", device=hardware, quantity="read", value=1e10)],
        "claims": [row("claims", id="1", verdict="reproduced")],
    }
    return write(path, **(tables | replaced))


def differing(a, b):
    return {(f.table, f.column) for f in compare.compare(a, b) if f.status == "differ"}


def changed(tmp_path, table, **values):
    """Two folders that are equal but for one cell of the table's first row."""
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    frame = schema.read(b / f"{table}.csv", table).astype(object)
    for column, value in values.items():
        frame.loc[0, column] = value
    schema.write(b / f"{table}.csv", table, frame)
    return a, b


def statuses(a, b, table="runs", **options):
    return {
        f.key: f.status for f in compare.compare(a, b, **options) if f.table == table and f.column.endswith(("loss", "value"))
    }


def seeds(path, device="CPU: one", **losses):
    runs = [grid_run(a, seed=s, val_loss=x, device=device) for a, of in losses.items() for s, x in enumerate(of)]
    return write(path, runs=runs)


def counted(a, b):
    return sum(f.status in ("agree", "undecided", "differ") for f in compare.compare(a, b))
