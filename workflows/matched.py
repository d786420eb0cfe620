"""The models of a preset at one size, matched in compute, with the recipe that trains each."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from evals.records import strict
from evals.records.errors import UserError
from evals.records.recipe import Train
from evals.records.runs import build_model
from models import arch_config
from models.match import MatchError, MatchRule, flops, gate, match, narrow_dense, params, solve
from models.transformer import ModelConfig
from workflows.presets import Measure, Preset, merge

ARCH_KNOBS = ("width_knob", "size_knob", "share_knob")
WIDTH_SHARE = re.compile(r"d_model ?/ ?(\d+)")


def width_share(value: Any, d_model: int) -> Any:
    """A field that is given as a share of the width ("d_model/2"), in numbers; anything else as it is. Mappings by key."""
    if isinstance(value, dict):
        return {key: width_share(item, d_model) for key, item in value.items()}
    found = WIDTH_SHARE.fullmatch(value) if isinstance(value, str) else None
    return d_model // int(found[1]) if found else value


def prototype(preset: Preset, arch: str, size: str) -> ModelConfig:
    """The model before its knobs are solved: knobs that the preset leaves out start anywhere."""
    shape = preset.sizes[size]
    fields = merge(merge(preset.archs[arch], preset.recipes.get(arch, {}).get("arch", {})), shape.archs.get(arch, {}))
    fields = {key: width_share(value, shape.d_model) for key, value in fields.items()}
    where = f"preset {preset.name}: archs.{arch}"
    try:
        cls = arch_config(fields.get("name"))
    except ValueError as error:
        raise UserError(f"{where}.name: {error}") from error
    knobs = {getattr(cls, knob) for knob in ARCH_KNOBS} - {None}
    start = {knob: 64 for knob in knobs if knob not in fields}
    train = recipe(preset, arch, size)
    backbone = {
        "vocab_size": preset.data["vocab_size"],
        "seq_len": train.seq_len,
        "base_width": preset.base_width,
        **{k: getattr(shape, k) for k in ("d_model", "n_layers", "n_heads", "n_kv_heads")},
    }
    return build_model(backbone | {"arch": start | fields}, where)


def recipe(preset: Preset, arch: str, size: str) -> Train:
    """How an architecture is trained at a size: the preset's recipe, its own tuned one on it, the size's on both."""
    own = {k: v for k, v in preset.recipes.get(arch, {}).items() if k != "arch"}
    data = merge(merge(preset.train, own), preset.sizes[size].train)
    train = strict.build(Train, data, f"preset {preset.name}: train of {arch} at {size}")
    train = dataclasses.replace(train, tokens=round(train.tokens * preset.sizes[size].token_scale))
    return with_decay_of(train, preset.decay_tokens)


def with_decay_of(train: Train, tokens: int) -> Train:
    """The recipe with the weight decay that is for so many tokens carried over to its own; 0 leaves it."""
    return dataclasses.replace(train, weight_decay=train.weight_decay * tokens / train.tokens) if tokens else train


@dataclass
class Matched:
    """One size: its solved models and the level they were solved for, which those `beside` have no say in."""

    models: dict[str, ModelConfig]
    rule: MatchRule
    beside: tuple[str, ...]

    @property
    def yardsticks(self) -> dict[str, ModelConfig]:
        return {arch: model for arch, model in self.models.items() if arch not in self.beside}

    def compared(self, preset: Preset) -> dict[str, ModelConfig]:
        """Those that are held against each other: the yardsticks, and of the others what the grid trains."""
        return self.yardsticks | {arch: self.models[arch] for arch in self.beside if arch in preset.grid.archs}

    @property
    def flops(self) -> float:
        return sum(map(flops, self.yardsticks.values())) / len(self.yardsticks)

    @property
    def params(self) -> float:
        sparse = [params(m) for m in self.yardsticks.values() if m.arch.size_knob]
        return sum(sparse) / len(sparse) if sparse else self.rule.sparse_ratio * self.flops / 2


def match_rule(preset: Preset) -> MatchRule:
    return strict.build(MatchRule, preset.match, f"preset {preset.name}: match")


def match_size(preset: Preset, size: str) -> Matched:
    rule = match_rule(preset)
    starts = {arch: prototype(preset, arch, size) for arch in preset.archs}
    try:
        yardsticks = {arch: start for arch, start in starts.items() if arch not in preset.beside}
        found = Matched(match(yardsticks, rule), rule, preset.beside)
        for arch in preset.beside:
            found.models[arch] = solve(starts[arch], found.flops, found.params, rule)
        gate(found.compared(preset), rule)
    except MatchError as error:
        raise UserError(f"preset {preset.name}, size {size}: {error}") from error
    return found


def matched_rows(preset: Preset, matched: dict[str, Matched]) -> list[dict[str, Any]]:
    """Rows of `matched_compute.csv`: every matched model, and the paper's narrower dense one as a comparator."""
    rows = []
    for size, group in matched.items():
        models = {name: (model, "matched") for name, model in group.compared(preset).items()}
        if "dense" in group.models:
            dense = group.models["dense"]
            narrow = dataclasses.replace(dense.arch, d_ff=narrow_dense(dense))
            models["dense_narrow"] = (dataclasses.replace(dense, arch=narrow), "comparator")
        for name, (model, role) in models.items():
            cost, sparse = model.cost().without("embedding"), bool(model.arch.size_knob)
            knobs = ("d_ff", "d_expert", "n_experts", "top_k", "n_keys", "d_key", "d_value")
            rows.append(
                {"preset": preset.name, "size": size, "arch": name, "role": role}
                | {knob: getattr(model.arch, knob, None) for knob in knobs}
                | {
                    "params": cost.params,
                    "active_params": cost.active_params,
                    "sparse_params": cost.sparse_params,
                    "flops_per_token": cost.flops,
                    "head_flops": 2 * model.vocab_size * model.d_model,
                    "selection_flops": model.arch.selection_flops(model.d_model, model.n_layers),
                    "flops_mismatch": cost.flops / group.flops - 1,
                    "params_mismatch": cost.params / group.params - 1 if sparse else None,
                    "memory_share": cost.memory_share,
                    "bytes_b1": round(cost.bytes(1, 2)),
                    "bytes_b64": round(cost.bytes(64, 2)),
                    "trained": name in preset.grid.archs and size in preset.grid.sizes,
                }
            )
    return rows


def decode_models(preset: Preset) -> list[dict[str, Any]]:
    """Models of the decode benchmark, at the preset's own sparse ratio first: {"sparse_ratio", "arch", "model"}.

    Raises:
        UserError: they cannot be matched at one of the ratios.
    """
    latency = preset.measure.latency
    own = strict.build(MatchRule, merge(preset.match, latency.match), f"preset {preset.name}: measure.latency.match")
    rows = []
    for ratio in dict.fromkeys((own.sparse_ratio, *latency.sparse_ratios)):
        rule = dataclasses.asdict(own) | {"sparse_ratio": ratio}
        chosen = {arch: preset.archs[arch] for arch in latency.archs}
        grid = dataclasses.replace(preset.grid, archs=latency.archs, repeats=())
        beside = tuple(arch for arch in preset.beside if arch in chosen)
        bare = dataclasses.replace(preset, recipes={}, measure=Measure())  # nothing else that names architectures
        timed = dataclasses.replace(bare, match=rule, archs=chosen, grid=grid, beside=beside)
        group = match_size(timed, latency.size)
        for arch, model in group.models.items():
            rows.append({"sparse_ratio": ratio, "arch": arch, "model": dataclasses.replace(model, seq_len=latency.context + 1)})
    return rows
