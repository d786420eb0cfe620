"""Published numbers: the ledger's and the reference tables' agree with each other and add up."""

import pandas as pd
import pytest
from made_up_claims import LEDGER

from evals.claims.evidence import counted


def test_published_changes_of_the_ablation_are_the_reference_table():
    table = counted.reference("ultramem_ablation")
    losses = table[(table.metric == "val_loss")].set_index("row").value.astype(float)
    checked = 0
    for entry in LEDGER.claims:
        if entry.metric == "contrast" and entry.args["chain"] == "ultramem":
            change = sum(weight * losses[label] for label, weight in entry.args["weights"].items())
            assert change == pytest.approx(entry.published, abs=1e-9), entry.id
            checked += 1
    assert checked == 11


def test_published_changes_of_the_sweeps_are_the_reference_table():
    table = counted.reference("ultramem_sweeps")
    changes = table[table.metric == "val_loss_change"].set_index("row").value.astype(float)
    for entry in LEDGER.claims:
        if entry.metric == "contrast" and entry.args["chain"] == "ultramem_sweeps":
            change = sum(weight * changes.get(label, 0.0) for label, weight in entry.args["weights"].items())
            assert change == pytest.approx(entry.published, abs=1e-9), entry.id


# The printed cells do not explain these two averages; see evals/claims/reference/README.md.
NOT_THE_MEAN = {("MoE-151M-2in32", "Avg6"): -0.40, ("Dense-1.6B", "Avg10"): -0.41}


def pivoted(name, index):
    table = counted.reference(name)
    return table.assign(value=table.value.astype(float)).pivot(index=index, columns="metric", values="value")


def test_published_averages_are_the_means_of_their_cells():
    main = pivoted("ultramem_main", "row").dropna(subset=["Avg10"])
    six = ["GPQA", "TriviaQA", "BBH-cot", "HellaSwag", "WinoGrande", "DROP"]
    for average, tasks in (("Avg6", six), ("Avg10", [*six, "ARC-C", "MMLU", "BoolQ", "AGIEval"])):
        for model, gap in (main[tasks].mean(axis=1) - main[average]).items():
            assert gap == pytest.approx(NOT_THE_MEAN.get((model, average), 0.0), abs=0.01), (model, average)
    assert len(main) == 10
    for name, tasks in (("ultramem_v2_long_context", 7), ("ultramem_v2_open", 9)):
        table = pivoted(name, "row").drop(columns=["train_loss", "eval_loss"], errors="ignore")
        means = table.drop(columns="All")
        assert means.shape[1] == tasks
        assert not means.isna().any(axis=None)
        assert (means.mean(axis=1) - table.All).abs().max() <= 0.1 + 1e-9


def test_the_ablation_table_adds_up():
    table = counted.reference("ultramem_ablation")
    table = table.assign(value=table.value.astype(float))
    rows = [name for name in table.row.unique() if name != "total"]
    wide = table.pivot(index="row", columns="metric", values="value")
    for loss, total in (("train_loss", -0.111), ("val_loss", -0.092)):
        steps = wide.loc[rows, loss].diff()
        assert (steps - wide.loc[rows, f"{loss}_change"]).abs().max() < 1e-9
        assert steps.sum() == pytest.approx(total)
        assert wide.loc["total", f"{loss}_change"] == total


def test_every_reference_number_names_its_source():
    names = sorted(path.stem for path in counted.REFERENCE.glob("*.csv"))
    assert len(names) == 9
    for name in names:
        table = counted.reference(name)
        assert list(table.columns) == ["row", "condition", "metric", "value", "unit", "source"]
        assert not (table[["row", "metric", "value", "unit", "source"]] == "").any(axis=None)
        assert not table.duplicated(["row", "condition", "metric"]).any()
        numeric = table[table.unit != "label"].value
        assert pd.to_numeric(numeric).notna().all()
        assert f"`{name}.csv`" in (counted.REFERENCE / "README.md").read_text()
