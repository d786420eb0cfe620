"""Rows of ablation chains and tuning settings as models and recipes: deltas in turn, then the knobs solved again."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from evals.records import strict
from evals.records.errors import UserError
from evals.records.recipe import Train
from evals.records.runs import build_arch, plain
from models.match import MatchRule, solve_sizes
from models.transformer import ModelConfig
from workflows.chains import Chain, Step, Tuning
from workflows.matched import Matched, recipe, width_share, with_decay_of
from workflows.presets import Preset, merge

RELATIVE = re.compile(r"x(?P<times>[\d.]+)|grid(?::(?P<arch>\w+))?")


def relative(value: Any, field: str, now: Any, model: ModelConfig, grid: dict[str, ModelConfig], arch: str) -> Any:
    """What a delta's value means in this model, so that one chain serves all sizes.

    "d_model/2" is a share of the width, "x2" twice the present value, "grid" what the preset's own model of this
    architecture has, "grid:ultramem" what that architecture's has.
    """
    found = RELATIVE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return width_share(value, model.d_model)
    if found["times"]:
        return type(now)(float(found["times"]) * now)
    return plain(grid[found["arch"] or arch].arch).get(field)


def apply(
    model: ModelConfig,
    train: Train,
    rule: MatchRule,
    changes: dict[str, Any],
    where: str,
    grid: dict[str, ModelConfig],
    arch: str,
) -> tuple[ModelConfig, Train, MatchRule]:
    """`changes` laid on architecture, `train.` or `match.` fields; `grid` and `arch` serve relative values."""
    parts = {"arch": plain(model.arch), "train": plain(train), "match": plain(rule)}
    for key, value in changes.items():
        part, _, name = key.rpartition(".")
        fields = parts.get(part or "arch")
        if fields is None:
            raise UserError(f"{where}: {key!r}: a delta sets fields of the architecture, or of train. or match.")
        strict.check_keys({name: value}, fields, f"{where} ({part or model.arch.name})")
        fields[name] = relative(value, name, fields[name], model, grid, arch)
    return (
        dataclasses.replace(model, arch=build_arch(parts["arch"], where)),
        strict.build(Train, parts["train"], where),
        strict.build(MatchRule, parts["match"], where),
    )


def tuned(preset: Preset, model: ModelConfig, arch: str, size: str, setting: dict[str, Any]) -> tuple[ModelConfig, Train]:
    """The matched model and the preset's recipe with one tuning setting on them, whatever `recipes` says.

    Tokens are the same at every size, so that only the width changes between sizes.
    """
    where = f"tuning.yaml: {arch}"
    own = {key.removeprefix("train."): value for key, value in setting.items() if key.startswith("train.")}
    fields = {key: value for key, value in setting.items() if not key.startswith("train.")}
    known = plain(model.arch)
    strict.check_keys(fields, known, where)
    tokens = {"tokens": preset.tuning_tokens or preset.train["tokens"]}
    train = strict.build(Train, merge(merge(preset.train | tokens, preset.sizes[size].train), own), where)
    return dataclasses.replace(model, arch=build_arch(known | fields, where)), train


def tuning_settings(preset: Preset, tuning: dict[str, Tuning]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(run id, architecture, size, setting) of every try: all settings at the tuning size, then rates at the transfer size.

    The latter carry the architecture's recipe, which holds the best setting.
    """
    tries, size = [], preset.tuning_size or preset.chain_size or preset.grid.sizes[0]
    for arch in [arch for arch in tuning if arch in preset.archs]:
        tries += [(f"tuning.{arch}.{i}", arch, size, setting) for i, setting in enumerate(tuning[arch].settings)]
        own = preset.recipes.get(arch, {})
        best = {f"train.{key}": value for key, value in own.items() if key != "arch"} | own.get("arch", {})
        for i, lr in enumerate(tuning[arch].transfer if preset.transfer_size else ()):
            tries.append((f"tuning.{arch}.transfer{i}", arch, preset.transfer_size, best | {"train.lr": lr}))
    return tries


def knob_values(tuning: Tuning, model: ModelConfig, train: Train) -> dict[str, float]:
    """What a tuned run has of every numeric knob that any setting of its architecture turns."""
    names = {name for setting in tuning.settings for name, value in setting.items() if not isinstance(value, str)}
    of = {name: train if name.startswith("train.") else model.arch for name in sorted(names)}
    return {name: float(getattr(part, name.removeprefix("train."))) for name, part in of.items()}


def architectures(chain: Chain) -> set[str]:
    """Those whose models a chain trains or takes fields from."""
    rows = (chain.base, *chain.steps)
    found = (RELATIVE.fullmatch(value) for row in rows for value in row.set.values() if isinstance(value, str))
    return {row.arch for row in rows if row.arch} | {match["arch"] for match in found if match and match["arch"]}


def chain_arms(chain: Chain) -> list[tuple[Step, list[Step]]]:
    """Each row of a chain with the deltas, base first, that make it."""
    arms = [(chain.base, [chain.base])]
    for i, step in enumerate(chain.steps):
        if chain.kind == "cumulative":
            arms.append((step, [chain.base, *chain.steps[: i + 1]]))
        elif chain.kind == "sweep":
            arms.append((step, [chain.base, step]))
        elif not chain.only or step.id in chain.only:
            without = dataclasses.replace(step, id=f"no-{step.id}", label=step.label.replace("+", "without ", 1), paper={})
            arms.append((without, [chain.base, *(s for s in chain.steps if s is not step)]))
    if chain.kind == "leave-one-out":
        complete = Step(id="complete", label=f"complete {chain.base.arch}")
        arms[0] = (complete, [chain.base, *chain.steps])
    return arms


def resolve_arm(preset: Preset, group: Matched, size: str, chain: Chain, deltas: list[Step], where: str):
    """(architecture name, model, recipe) of one row: deltas in turn, then the chain's knobs solved again."""
    arch = deltas[0].arch
    model, train, rule = group.models[arch], recipe(preset, arch, size), group.rule
    for i, step in enumerate(deltas):
        if i and step.arch:
            arch, model, train = step.arch, group.models[step.arch], recipe(preset, step.arch, size)
        before = (model, train, rule)
        model, train, rule = apply(*before, step.set, f"{where}, step {step.id}", group.models, arch)
        if i and not step.arch and (model, train, rule) == before:
            raise UserError(f"{where}, step {step.id}: {step.set} is the case already, so this delta changes nothing")
    if preset.decay_tokens:
        train = with_decay_of(train, recipe(preset, arch, size).tokens)
    keep = {knob for knob in ("width_knob", "size_knob") if knob.split("_")[0] not in chain.knobs}
    target_params = group.params * rule.sparse_ratio / group.rule.sparse_ratio
    target_flops = group.flops * rule.flops_ratio / group.rule.flops_ratio
    solved = solve_sizes(model, target_flops, target_params, rule.width_multiple)
    kept = {getattr(model.arch, knob): getattr(model.arch, getattr(model.arch, knob)) for knob in keep}
    return arch, dataclasses.replace(solved, arch=dataclasses.replace(solved.arch, **kept)) if kept else solved, train
