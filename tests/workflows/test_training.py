"""The trainer: continues bit for bit, keeps what it has, refuses what would spoil a result."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from ports import free_ports
from repository import ENV
from training_runs import NoStop, command, finish, make_run, torchrun, trainer

from evals.records import schema, tensors
from evals.records.errors import UserError
from workflows import checkpoint, train


def losses(folder):
    frame = pd.read_csv(folder / "train.csv")
    return frame[["step", "split", "source", "loss"]].to_csv(index=False)


@pytest.fixture(scope="module", params=["moe8", "ultramem"])
def straight(request, tmp_path_factory, corpus, models):
    """(architecture, folder of a run of it that nobody disturbed)."""
    folder = make_run(tmp_path_factory.mktemp("straight") / request.param, corpus, models[request.param])
    assert finish(folder).returncode == 0
    return request.param, folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_continues_bit_for_bit(tmp_path, corpus, models, straight, how):
    arch, straight = straight
    broken = make_run(tmp_path / "broken", corpus, models[arch], checkpoint_s=0.0)
    process = subprocess.Popen(command(broken), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (broken / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate()[1]
    if how == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert "stopped by SIGTERM; saved at step" in said
        assert "Traceback" not in said
    assert not (broken / "runs.csv").exists()
    assert finish(broken).returncode == 0
    assert losses(broken) == losses(straight)
    ours, theirs = (pd.read_csv(folder / "runs.csv").iloc[0] for folder in (broken, straight))
    assert (ours.val_loss, ours.resumed, theirs.resumed) == (theirs.val_loss, 1, 0)
    a, b = (tensors.read_tensors(folder / "model.safetensors")[0] for folder in (broken, straight))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_orphan_saves_and_leaves(tmp_path, corpus, models):
    """What a workflow engine killed with -9 leaves behind stops by itself."""
    folder = make_run(tmp_path / "orphan", corpus, models["dense"], tokens=10**7, checkpoint_s=1e9)
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess as s; p = s.Popen({command(folder)!r}); print(p.pid, flush=True); p.wait()"],
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    while "step" not in parent.stdout.readline():
        pass
    parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "checkpoint.safetensors").exists()


def test_training_learns_and_writes_every_table(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["ultramem_v2"], tokens=40 * 8 * 32)
    one = trainer(folder)
    one.train(NoStop())
    one.write()
    table, steps, health = (schema.read(folder / f"{t}.csv", t) for t in ("runs", "train", "health"))
    assert table.val_loss[0] < 4.8 < 5.4 < steps.loss[0]
    assert table.tokens[0] == steps.tokens.max() == 40 * 8 * 32
    for split in ("val", "test"):
        assert table[f"{split}_bpb"][0] == pytest.approx(table[f"{split}_loss"][0] / np.log(2) / 3)
    assert table.value_optimizer[0] == "dense"
    assert {"used_share", "mean_score"} <= set(health.metric)
    assert not (folder / "checkpoint.safetensors").exists()


def test_every_point_of_the_curve_reads_the_same_windows_and_the_final_scores_stand_apart(
    tmp_path, corpus, models, monkeypatch
):
    """evidence.md defect 8: the last point read eight times the windows of those before it."""
    one = trainer(make_run(tmp_path / "run", corpus, models["dense"]))
    read = []
    monkeypatch.setattr(one, "loss_on", lambda tokens, wanted: read.append((tokens[:2].tolist(), wanted)) or 1.0)
    one.train(NoStop())
    validation, test = (one.shards.__dict__[split]["cycle"][:2].tolist() for split in ("validation", "test"))
    assert read == [(validation, 128), (validation, 128), (validation, 1024), (test, 1024)]
    assert [row["split"] for row in one.rows if row["split"] != "train"] == [
        split for split in ("validation", "validation", "validation-final", "test") for _ in range(2)
    ]


def test_sources_outside_the_headline_do_not_move_it(tmp_path, corpus, models):
    one = trainer(make_run(tmp_path / "run", corpus, models["dense"]))
    tokens = {"tokens": {"train": 300}}
    one.shards.meta["sources"] = {"a": tokens, "b": {"tokens": {"train": 100}}, "c": tokens | {"headline": False}}
    assert one.headline({"a": 1.0, "b": 3.0, "c": 99.0}, "tokens") == pytest.approx(1.5)


def test_data_order_is_the_same_for_every_architecture(tmp_path, corpus, models):
    one, other = (trainer(make_run(tmp_path / arch, corpus, models[arch])) for arch in ("dense", "moe8"))
    for step in (0, 7, 400):
        assert all(torch.equal(a, b) for a, b in zip(one.windows.batch(step), other.windows.batch(step), strict=True))
    assert not torch.equal(one.windows.batch(0)[0], one.windows.batch(1)[0])


def test_an_epoch_shows_every_window_once(corpus):
    tokens = np.fromfile(corpus / "train.bin", "<u2")
    windows = train.Windows(tokens, 8, 32, seed=1)
    starts = set()
    for step in range(windows.count // 8):
        windows.batch(step)
        starts |= {int(windows.order[i]) for i in range(step * 8, step * 8 + 8)}
    assert len(starts) == windows.count // 8 * 8


def test_diverged_loss_names_step_and_checkpoint(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["dense"], checkpoint_s=0.0)
    one = trainer(folder)
    good = one.update

    def poisoned():
        if one.step == 3:
            one.model.norm.weight.data.fill_(float("nan"))
        return good()

    one.update = poisoned
    with pytest.raises(UserError, match=r"at step 4; the last good checkpoint is .*checkpoint.safetensors.*lower lr"):
        one.train(NoStop())
    assert tensors.read_tensors(one.checkpoint)[1]["step"] == 3


def test_data_changed_in_place_is_refused(tmp_path, corpus, models):
    """2,000 tokens of the same length: nothing is trained on what meta.json does not name."""
    other = shutil.copytree(corpus, tmp_path / "other")
    content = bytearray((other / "train.bin").read_bytes())
    content[30_000:34_000] = bytes(4_000)
    (other / "train.bin").write_bytes(content)
    folder = make_run(tmp_path / "run", other, models["dense"])
    done = finish(folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {other / 'train.bin'} is damaged or missing (its sha256 is not that of meta.json)")
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "runs.csv").exists()


def test_second_trainer_is_refused(tmp_path):
    with checkpoint.lock(tmp_path):
        code = f"from pathlib import Path; from workflows.checkpoint import lock\nwith lock(Path({str(tmp_path)!r})): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert f"in use by process {os.getpid()}" in other.stderr


def test_checkpoint_of_another_config_is_refused(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["dense"])
    one = trainer(folder)
    one.save()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["train"]["lr"] = 1e-4
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="made by another config; delete it"):
        trainer(folder).restore()


def test_damaged_checkpoint_is_one_sentence(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["dense"])
    (folder / "checkpoint.safetensors").write_bytes(b"half")
    done = finish(folder)
    assert done.returncode == 2
    assert "missing or damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_keeps_the_checkpoint_before(tmp_path, corpus, models, monkeypatch):
    one = trainer(make_run(tmp_path / "run", corpus, models["dense"]))
    one.save()
    before = one.checkpoint.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        one.save()
    assert one.checkpoint.read_bytes() == before
    assert not list(one.folder.glob("*.part"))


@pytest.mark.parametrize("arch", ["dense", "ultramem", "moe8"])
def test_micro_batches_add_up(tmp_path, corpus, models, arch):
    whole, pieces = (trainer(make_run(tmp_path / f"m{micro}", corpus, models[arch], micro_batch=micro)) for micro in (0, 2))
    batch = whole.windows.batch(0)
    whole.model.train(), pieces.model.train()
    (loss, aux), (other, other_aux) = whole.gradients(*batch), pieces.gradients(*batch)
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    assert aux.item() == pytest.approx(other_aux.item(), rel=1e-5)
    for (name, a), b in zip(whole.model.named_parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(("arch", "values"), [("dense", "dense"), ("moe8", "dense"), ("ultramem", "rows")])
def test_two_workers_train_as_one(tmp_path, corpus, models, arch, values):
    one = make_run(tmp_path / "one", corpus, models[arch], value_optimizer=values)
    two = make_run(tmp_path / "two", corpus, models[arch], value_optimizer=values, workers=2)
    assert finish(one).returncode == 0
    torchrun(two, workers=2)
    a, b = (pd.read_csv(folder / "train.csv") for folder in (one, two))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4)
    np.testing.assert_allclose(a.aux_loss, b.aux_loss, rtol=1e-4)


@pytest.mark.parametrize("told", [[1], [0, 1]])
def test_workers_stop_after_the_same_step(tmp_path, corpus, models, told):
    """A signal may reach one worker and not the other; both leave, once the checkpoint is whole."""
    folder = make_run(tmp_path / "two", corpus, models["dense"], workers=2, tokens=10**7, checkpoint_s=1e9)
    (port,) = free_ports(1)
    shared = ENV | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            command(folder, "workflows.worker"),
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert "step" in workers[0].stdout.readline()
        for rank in told:
            workers[rank].send_signal(signal.SIGTERM)
        said = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [128 + signal.SIGTERM] * 2, said
    assert said[0].count("stopped by SIGTERM; saved at step") == 1
    assert "stopped by" not in said[1]
    assert "Traceback" not in "".join(said)
    assert tensors.read_tensors(folder / "checkpoint.safetensors")[1]["step"] > 0


def test_workers_must_be_started(tmp_path, corpus, models):
    folder = make_run(tmp_path / "run", corpus, models["dense"], workers=2)
    done = finish(folder)
    assert done.returncode == 2
    assert "set for 2 workers, but 1 run; start it with torchrun" in done.stderr
