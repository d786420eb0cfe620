"""Curves and configs of single runs in a made-up results folder, as they are committed: no table `train`."""

from pathlib import Path

from evals.records import schema
from evals.records.store import keep

CONFIG = "run: {run}\nmodel:\n  arch:\n    name: ultramem\n    n_keys: 12\n"


def store(folder: Path) -> None:
    """Moves the rows of `train.csv` to `runs/{run}/train.csv.gz`, and writes a config and the rest beside them."""
    runs, train = (schema.read(folder / f"{name}.csv", name) for name in ("runs", "train"))
    for run, rows in train.groupby("run"):
        made = folder / "made" / str(run)
        schema.write(made / "train.csv", "train", rows)
        schema.write(made / "runs.csv", "runs", runs[runs["run"] == run])
        (made / "config.yaml").write_text(CONFIG.format(run=run))
        keep(made, folder / "runs")
        for path in made.iterdir():
            path.unlink()
        made.rmdir()
    (folder / "made").rmdir()
    (folder / "train.csv").unlink()
