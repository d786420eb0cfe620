"""The loss of quantised tables: of the whole model's own loss, paired over windows, and of nothing but the tables."""

from pathlib import Path

import numpy as np
import pytest
import torch
from offloaded_runs import RUNS

from evals.offload import losses
from evals.offload.measure import trained
from evals.records import schema
from evals.records.shards import load_shards
from models.offload import tables_of


@pytest.fixture(scope="module")
def run(results):
    config, model = trained(results / "runs/ultramem-xs-s0")
    return config, model, load_shards(Path(config.data))


def by_hand(model, shards, seq_len, n_tokens):
    """Mean loss of each headline source, weighted by its training tokens, in float64 from logits."""
    means, weights = [], []
    for name in ("wiki", "words"):
        text, found = torch.from_numpy(shards.test[name].astype(np.int64)), []
        for start in range(0, min(n_tokens // seq_len * seq_len, (len(text) - 1) // seq_len * seq_len), seq_len):
            with torch.no_grad():
                logits_TV = model.logits(text[None, start : start + seq_len])[0].double()
            found.append(torch.nn.functional.cross_entropy(logits_TV, text[start + 1 : start + seq_len + 1]).item())
        means.append(np.mean(found))
        weights.append(shards.meta["sources"][name]["tokens"]["train"])
    return np.average(means, weights=weights)


def test_the_loss_is_the_runs_and_its_change_that_of_its_tables(run, tmp_path):
    config, model, shards = run
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = {row["bits"]: row for row in losses.rows(config, model, shards, 128)}
    assert list(rows) == [32, 16, 8, 4]
    assert rows[32]["loss"] == pytest.approx(by_hand(model, shards, config.train.seq_len, 128), abs=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for bits, largest in ((8, 127), (4, 7)):
        for table in tables_of(model).values():
            values_NC = table.values_NC.data
            step_N1 = values_NC.abs().amax(1, keepdim=True) / largest
            values_NC.copy_((values_NC / step_N1).round() * step_N1)
        expected = by_hand(model, shards, config.train.seq_len, 128) - rows[32]["loss"]
        assert rows[bits]["delta"] == pytest.approx(expected, abs=2e-5)
        assert rows[bits]["delta"] == pytest.approx(rows[bits]["loss"] - rows[32]["loss"], abs=1e-9)
        model.load_state_dict(before)
    assert abs(rows[4]["delta"]) > 3 * abs(rows[8]["delta"]) > 0
    assert rows[4]["stderr"] > rows[8]["stderr"] > 0
    assert rows[32]["table_bytes"] / rows[16]["table_bytes"] == 2
    schema.write(tmp_path / "loss.csv", "offload_loss", rows.values())


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dense-xs-s0"])
def test_every_run_with_tables_has_its_rows(results, name):
    config, model = trained(results / "runs" / name)
    rows = list(losses.rows(config, model, load_shards(Path(config.data)), 64))
    assert {row["n_windows"] for row in rows} == {2 * (64 // config.train.seq_len)}
    assert all(np.isfinite(row["loss"]) for row in rows)
