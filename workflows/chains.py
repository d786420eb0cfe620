"""Ablation chains and what tuning tries, as the YAML files state them; imports no torch.

A chain is a base and a list of deltas. `workflows.ablate` turns rows into models and recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from evals.records import strict
from evals.records.errors import UserError
from workflows.presets import CONFIGS, read_yaml


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of a chain. `set` maps fields of the architecture, or `train.`/`match.` fields, to values; `arch` changes
    the architecture itself. `paper` holds the row's published numbers."""

    id: str
    label: str
    set: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A base and its deltas.

    Args:
        kind: cumulative (row i holds all deltas up to i), sweep (each row is the base and its own delta), or
            leave-one-out (each row is the complete chain without its own delta).
        only: of a leave-one-out chain, the ids of the deltas that are left out in turn (none: all).
        base: the architecture and the fields that take it to the first row.
        knobs: which knobs are solved again for every row, so that rows have equal FLOPs and parameters.
        seeds: of this chain, where they are not the preset's `chain_seeds`.
        tuned: every row is trained with each of the preset's `chain_rates`, so that a step is not punished for the rate of
            the row before.
    """

    title: str
    kind: Literal["cumulative", "sweep", "leave-one-out"] = "sweep"
    base: Step
    steps: tuple[Step, ...]
    only: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ("width", "size")
    seeds: tuple[int, ...] = ()
    tuned: bool = False
    source: str = "not published"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What the tuning target tries for one architecture.

    Args:
        settings: `train.` fields and fields of the architecture, at the preset's `tuning_size`; the best becomes its recipe.
        transfer: of the recipe, rates at the preset's `transfer_size`, around the best one: does the optimum move?
    """

    settings: tuple[dict[str, Any], ...]
    transfer: tuple[float, ...] = ()


def load_tuning() -> dict[str, Tuning]:
    """Architecture -> what is tried.

    Raises:
        UserError: architectures are tried unequally often; no architecture gets more care than another.
    """
    data = read_yaml(CONFIGS / "tuning.yaml")
    tuning = {arch: strict.build(Tuning, tries, f"tuning.yaml: {arch}") for arch, tries in data.items()}
    counts = {arch: len(tries.settings) for arch, tries in tuning.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"tuning.yaml: every architecture has equally many settings, but the counts are {counts}")
    return tuning


def load_chains() -> dict[str, Chain]:
    data = read_yaml(CONFIGS / "ablations.yaml")
    for name, chain in data.items():
        if "of" in chain:  # the base and steps of another chain
            strict.check_keys({chain["of"]: None}, data, f"ablations.yaml: {name}.of")
            data[name] = {key: data[chain["of"]][key] for key in ("base", "steps")} | chain
            data[name].pop("of")
    chains = {name: strict.build(Chain, chain, f"ablations.yaml: {name}") for name, chain in data.items()}
    for name, chain in chains.items():
        ids = [chain.base.id, *(step.id for step in chain.steps)]
        if len(set(ids)) < len(ids):
            raise UserError(f"ablations.yaml: {name} uses a step id twice: {', '.join(ids)}")
    return chains
