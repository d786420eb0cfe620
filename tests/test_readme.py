"""What the README says of results is what results/reference holds, and its commands exist."""

import re
from pathlib import Path

import pytest

from evals import schema
from workflows import presets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NAMES = {
    "Dense": "dense",
    "MoE-2": "moe2",
    "MoE-8": "moe8",
    "PKM": "pkm",
    "UltraMem": "ultramem",
    "UltraMemV2": "ultramem_v2",
}


def test_loss_table_is_the_reference():
    runs = schema.read(ROOT / "results/reference/runs.csv", "runs")
    losses = runs[~runs.run.str.contains(".", regex=False)].pivot_table(index="arch", columns="size", values="val_loss")
    table = dict(re.findall(r"^\| (\w[\w-]*) \| (\d\.\d+ \| \d\.\d+ \| \d\.\d+) \|$", README, re.M))
    assert set(table) == set(NAMES)
    for name, cells in table.items():
        assert cells == " | ".join(f"{losses.loc[NAMES[name], size]:.3f}" for size in ("xs", "s", "m")), name


def test_latency_table_is_the_reference():
    rows = schema.read(ROOT / "results/reference/latency.csv", "latency")
    rows = rows[(rows.part == "ffn") & (rows.variant == "plain") & (rows.threads == 1) & (rows.dtype == "bf16")]
    times = rows[rows.sparse_ratio.isin([0, 12])].pivot_table(index="batch", columns="arch", values="p50_ms")
    table = dict(re.findall(r"^\| (\d+) \| ((?:[\d.]+ \| ){5}[\d.]+) \|$", README, re.M))
    assert [int(batch) for batch in table] == list(times.index)
    for batch, cells in table.items():
        assert cells == " | ".join(f"{times.loc[int(batch), arch]:.1f}" for arch in NAMES.values()), batch


def test_verdicts_are_those_of_the_reference():
    verdicts = schema.read(ROOT / "results/reference/claims.csv", "claims").verdict.value_counts()
    told = re.findall(r"(\d+) (reproduced|direction only|not reproduced|inconclusive|not tested)", README)
    assert {word: int(n) for n, word in told} == verdicts.to_dict()


def test_every_preset_and_chain_is_named():
    for name in (*presets.preset_names(), *(f"ablation_{chain}" for chain in presets.load_chains()), "tuning", "plan"):
        assert f"`{name}`" in README or f" {name}" in README, name


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README))))
def test_modules_that_are_named_exist(module):
    assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists()
