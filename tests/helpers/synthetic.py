"""Small made-up results folders for the tests of evals/claims/ledger.py and evals/compare.py."""

from evals.records import schema

BLANK = {str: "x", int: 1, float: 1.0, bool: False}


def row(table, **values):
    """A row that fits the schema: what is not given and may not be missing gets a dull value."""
    dull = {c.name: c.choices[0] if c.choices else BLANK[c.dtype] for c in schema.columns(table) if c.required}
    return dull | values


def grid_run(arch, size="s", seed=0, **values):
    shape = {"d_model": 64 if size == "s" else 128, "active_params": 10**5, "tokens": 10**6, "val_loss": 4.0}
    named = {"run": f"{arch}-{size}-s{seed}", "preset": "cpu", "arch": arch, "size": size, "seed": seed}
    same = {"device": "CPU: made up", "status": "finished", "precision": "fp32", "threads": 1, "torch": "2.13.0"}
    made = named | shape | same | values
    loss = made["val_loss"]
    return row("runs", **({"test_loss": loss, "test_bpb": loss and loss / 2.8} | made))


def chain_runs(chain, losses, arch="ultramem", kind="cumulative", **values):
    """(runs, arms) of a chain: losses maps a label to the losses of its seeds."""
    runs, arms = [], []
    for order, (label, by_seed) in enumerate(losses.items()):
        for seed, loss in enumerate(by_seed):
            run = f"{chain}.{order}-s-s{seed}"
            runs.append(grid_run(arch, seed=seed, run=run, val_loss=loss, **values))
            arms.append(row("arms", chain=chain, kind=kind, step=f"{order}", order=order, label=label, set="{}", run=run))
    return runs, arms


def write(folder, **tables):
    for table, rows in tables.items():
        schema.write(folder / f"{table}.csv", table, rows)
    return folder
