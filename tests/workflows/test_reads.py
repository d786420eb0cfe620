"""How often training read each row, and the losses on single tokens: exact, kept over a resume, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from training_runs import NoStop, make_run, trainer

from evals.records import tensors
from evals.records.shards import Shards
from workflows import health


class StopAt:
    """Asks the trainer to leave after its n-th step."""

    def __init__(self, n):
        self.left = n

    def requested(self):
        self.left -= 1
        return 15 if self.left == 0 else 0


def trained(folder):
    one = trainer(folder)
    one.train(NoStop())
    one.write()
    return one


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus, models):
    """A trained UltraMemV2, and all rows that its training looked up."""
    one = trainer(make_run(tmp_path_factory.mktemp("reads") / "run", corpus, models["ultramem_v2"]))
    picks = {name: [] for name in one.reads}
    for memory in one.model.memories:
        name = next(name for name, table in health.tables(one.model).items() if table is memory.table)
        address = memory.address

        def follow(index, jump=None, address=address, rows=picks[name], memory=memory):
            found = address(index, jump)
            if memory.training:
                rows.append(found[0].flatten())
            return found

        memory.address = follow
    one.train(NoStop())
    one.write()
    return one, picks


def test_every_pick_of_every_step_is_counted(run):
    one, picks = run
    assert picks
    for name, rows in picks.items():
        torch.testing.assert_close(one.reads[name], torch.bincount(torch.cat(rows), minlength=len(one.reads[name])))
        tokens, layer = 20 * 8 * 32, one.model.memories[0].cfg
        assert one.reads[name].sum() == tokens * layer.n_mem_heads * layer.top_m


def test_counting_changes_no_number(run, tmp_path, corpus, models):
    one, _ = run
    without = trained(make_run(tmp_path / "without", corpus, models["ultramem_v2"], health_tokens=0))
    assert [row["loss"] for row in one.rows] == [row["loss"] for row in without.rows]
    theirs = without.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())
    assert not without.reads
    assert not (without.folder / "tokens.safetensors").exists()


def test_counts_are_kept_over_a_resume(run, tmp_path, corpus, models):
    folder = make_run(tmp_path / "broken", corpus, models["ultramem_v2"])
    with pytest.raises(SystemExit):
        trainer(folder).train(StopAt(7))
    again = trainer(folder)
    again.restore()
    assert again.step == 7
    again.train(NoStop())
    again.write()
    one, _ = run
    assert all(torch.equal(count, one.reads[name]) for name, count in again.reads.items())
    ours, theirs = (tensors.read_tensors(r.folder / "tokens.safetensors")[0] for r in (again, one))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_single_tokens_are_the_test_loss_token_by_token(run):
    one, _ = run
    path = one.folder / "tokens.safetensors"
    found, note = tensors.read_tensors(path)
    n = 4000 // 32 * 32 - 32 * (4000 % 32 == 0)
    assert {name: (len(values), values.dtype) for name, values in found.items()} == dict.fromkeys(
        ("loss", "frequency", "reads"), (n, torch.float16)
    )
    assert note["sources"] == {"cycle": {"tokens": n, "window": 32}}
    test = pd.DataFrame(one.rows).query("split == 'test' and source == 'cycle'").loss.item()
    assert found["loss"][:1024].double().mean().item() == pytest.approx(test, abs=2e-3)
    target = int(one.shards.test["cycle"][5])
    assert found["frequency"][4].item() == pytest.approx(np.log2(1 + (one.shards.train == target).sum()), abs=4e-3)


def test_reads_of_a_token_are_those_of_its_rows(run):
    """By hand for the first window: rows from the layer's own picks, counts from training."""
    one, _ = run
    seen = []
    one.model.eval()
    ends = [
        health.watch(table, lambda row, count=one.reads[name]: seen.append(np.log2(1 + count[row].numpy())))
        for name, table in health.tables(one.model).items()
    ]
    with torch.no_grad():
        one.model.hidden(torch.from_numpy(one.shards.test["cycle"][:32].astype(np.int64))[None])
    for end in ends:
        end()
    found = tensors.read_tensors(one.folder / "tokens.safetensors")[0]["reads"]
    np.testing.assert_allclose(found[:32].float(), np.concatenate(seen, 1).mean(1), rtol=1e-3)
    assert found.std() > 0


def test_a_table_that_layers_share_and_micro_batches_are_counted_once(tmp_path, corpus, models):
    shared = replace(models["ultramem_v2"], arch=replace(models["ultramem_v2"].arch, share="ring"))
    whole, pieces = (trainer(make_run(tmp_path / f"m{micro}", corpus, shared, micro_batch=micro)) for micro in (0, 2))
    assert len(whole.reads) == 1 < len(whole.model.memories)
    for one in (whole, pieces):
        one.model.train()
        one.gradients(*one.windows.batch(0))
    assert all(torch.equal(count, whole.reads[name]) for name, count in pieces.reads.items())
    assert sum(count.sum() for count in whole.reads.values()) == sum(
        8 * 32 * memory.cfg.n_mem_heads * memory.cfg.top_m for memory in whole.model.memories
    )


def test_the_sample_is_of_headline_sources_and_small_enough():
    tokens = np.arange(60_000, dtype=np.uint16)
    sources = {"a": {}, "b": {}, "short": {}, "c": {"headline": False}}
    test = {"a": tokens, "b": tokens[7:], "short": tokens[:100], "c": tokens}
    shards = Shards(Path(), tokens, {}, test, {"sources": sources})
    found = health.sample(shards, 256)
    assert {name: batch.shape for name, batch in found.items()} == {"a": (21, 257), "b": (21, 257)}
    assert found["b"][1, 0] == 7 + 256
    long = health.sample(shards, 30_000)
    assert sum(batch[:, 1:].size for batch in long.values()) <= health.TOKENS
    assert 3 * 2 * health.TOKENS + 1200 < 100_000
