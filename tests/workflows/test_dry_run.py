"""The papers' sizes on many GPUs: every parameter and buffer is somewhere, shares shrink, and what does not fit is said so."""

import dataclasses

import pytest

from evals.access.partition import Lookup, by_dimension
from evals.decode.roofline import load
from evals.records import schema
from models.count import entries
from workflows import dry_run
from workflows.memory import Sized, sharded_bytes


@pytest.fixture(scope="module")
def ultramem():
    return Sized(entries()["UltraMem-151M-x12"].model)


@pytest.fixture(scope="module")
def rows():
    names = ("Dense-151M", "MoE-151M-2in32", "UltraMem-151M-x12")
    return list(dry_run.rows(load()[0], {name: entries()[name].model for name in names}))


def test_every_parameter_is_counted_once(ultramem):
    cost = ultramem.cfg.cost()
    assert ultramem.tables + ultramem.experts + ultramem.dense == cost.params
    assert ultramem.tables == 3 * 1100**2 * 512
    assert ultramem.addresses >= 3 * 4 * 4 * 1100**2  # a shuffle of 32 bits a cell in each memory
    assert ultramem.ask == Lookup(84, 512, 2, 4)
    mixture = Sized(entries()["MoE-151M-2in32"].model)
    assert mixture.experts == 12 * 32 * 2 * 1024 * 2528


def test_the_largest_models_have_the_papers_totals():
    for name, cfg in dry_run.undisclosed().items():
        total = float(name.split("-")[2].removesuffix("B")) * 1e9
        cost = cfg.cost().without("embedding")
        assert cost.params == pytest.approx(total, rel=0.02), name
        assert cost.active_params == pytest.approx(2.5e9, rel=0.02), name
    assert dry_run.undisclosed()["UltraMemV2-2.5B-60B-top768"].arch.n_mem_heads == 6


def test_what_is_replicated_stays_and_what_is_parted_shrinks(ultramem):
    few, many = (sharded_bytes(ultramem, "pooled", workers, 1024, dry_run.ENGINE) for workers in (8, 16))
    for kind in ("parameters", "gradients", "moments"):
        assert many[kind] == few[kind] / 2
    assert few["moments"] == 2 * few["parameters"] == 8 * ultramem.cfg.cost().params / 8
    assert many["activations"] == few["activations"]
    assert sharded_bytes(ultramem, "pooled", 8, 2048, dry_run.ENGINE)["activations"] == 2 * few["activations"]


def test_traffic_is_that_of_every_memory_layer(ultramem):
    assert dry_run.sparse_traffic(ultramem, "dimension", 8) == 3 * by_dimension(ultramem.ask, 8, backward=True)
    assert dry_run.sparse_traffic(Sized(entries()["Dense-151M"].model), "none", 8) == 0


def test_rows_fit_their_table_and_say_what_fits(rows, tmp_path):
    schema.write(tmp_path / "scale.csv", "scale", rows)
    frame = schema.read(tmp_path / "scale.csv", "scale")
    assert set(frame.partition) == {"none", "experts", "number", "pooled", "dimension"}
    assert (frame.groupby(["model", "gpus", "device"]).cheaper.sum() >= 1).all()
    kinds = [f"{kind}_gb" for kind in ("parameters", "gradients", "moments", "activations", "buffers")]
    assert frame[kinds].sum(axis=1).to_numpy() == pytest.approx(frame.memory_gb.to_numpy())
    assert ((frame.memory_gb <= 0.9 * frame.device_gb) == (frame.fits == "fits")).all()
    assert (frame.step_s == frame.compute_s + frame.exchange_s).all()


def test_what_does_not_fit_is_said_and_has_no_days(capsys):
    devices, _ = load()
    small = {key: dataclasses.replace(device, memory=1e9) for key, device in devices.items()}
    found = list(dry_run.rows(small, {"UltraMem-151M-x12": entries()["UltraMem-151M-x12"].model}))
    assert {(row["fits"], row["days"]) for row in found} == {("does not fit", None)}
    dry_run.tell(found)
    assert "does not fit on 512 GPUs" in capsys.readouterr().out


def test_beyond_a_node_the_slower_network_carries_everything():
    assert dry_run.seconds(7e9, 16, (100e9, 10e9)) == 10 * dry_run.seconds(7e9, 8, (100e9, 10e9))
