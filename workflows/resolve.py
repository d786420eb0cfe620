"""Presets and chains -> complete, validated, compute-matched run configs, written before anything runs.

`results/{preset}/grid.json` lists runs, ablation arms and the matched-compute table; `runs/{run}/config.yaml` is all that
the trainer and every later stage read. Runs with equal configs are one run, whatever chain or grid asked for them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models import arch_config, arch_module
from models.match import MatchError, MatchRule, flops, gate, match, narrow_dense, params, solve_sizes
from models.transformer import ModelConfig
from workflows import errors, strict
from workflows.errors import UserError
from workflows.presets import Chain, Preset, Step, Train, load_chains, load_preset, load_tuning, merge
from workflows.provenance import sha, training_source

ARCH_KNOBS = ("width_knob", "size_knob", "share_knob")
RELATIVE = re.compile(r"(?:d_model ?/ ?(?P<part>\d+)|x(?P<times>[\d.]+)|grid(?::(?P<arch>\w+))?)")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run. `seed` gives the three seeds of data order, initialisation and the rest."""

    run: str
    preset: str
    arch: str
    size: str
    seed: int
    data: str
    model: ModelConfig
    train: Train

    @property
    def seeds(self) -> dict[str, int]:
        return {"data": 1000 + self.seed, "init": 2000 + self.seed, "rest": 3000 + self.seed}

    def as_dict(self) -> dict[str, Any]:
        return plain(self)

    @property
    def sha(self) -> str:
        """Hash of what determines the result: not of the run's or the preset's name."""
        return sha({k: v for k, v in self.as_dict().items() if k not in ("run", "preset", "arch", "size")})


def plain(value: Any) -> Any:
    """Dataclasses as nested dicts of YAML types, architectures with their name."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"name": value.name} | fields if hasattr(type(value), "width_knob") else fields
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def build_arch(data: dict[str, Any], where: str) -> Any:
    data = dict(data)
    name = data.pop("name", None)
    try:
        cls = arch_config(name)
    except ValueError as error:
        raise UserError(f"{where}.name: {error}") from error
    return strict.build(cls, data, f"{where} ({name})")


def build_model(data: dict[str, Any], where: str) -> ModelConfig:
    return strict.build(ModelConfig, data | {"arch": build_arch(data["arch"], f"{where}.arch")}, where)


def load_run(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises:
        UserError: the folder has no config, or one that does not fit the present code.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{path} does not exist; `snakemake` writes it, or `python -m workflows.resolve --preset NAME`")
    data = yaml.safe_load(path.read_text())
    return strict.build(RunConfig, data | {"model": build_model(data["model"], f"{path}: model")}, str(path))


def fraction(value: Any, d_model: int) -> Any:
    """A field of the preset that is given as a share of the width ("d_model/2")."""
    found = RELATIVE.fullmatch(value) if isinstance(value, str) else None
    return d_model // int(found["part"]) if found and found["part"] else value


def prototype(preset: Preset, arch: str, size: str) -> ModelConfig:
    """The model before its knobs are solved: knobs that the preset leaves out start anywhere."""
    shape = preset.sizes[size]
    fields = merge(merge(preset.archs[arch], preset.recipes.get(arch, {}).get("arch", {})), shape.archs.get(arch, {}))
    fields = {key: fraction(value, shape.d_model) for key, value in fields.items()}
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
        **{k: getattr(shape, k) for k in ("d_model", "n_layers", "n_heads", "n_kv_heads")},
    }
    return build_model(backbone | {"arch": start | fields}, where)


def recipe(preset: Preset, arch: str, size: str) -> Train:
    own = {k: v for k, v in preset.recipes.get(arch, {}).items() if k != "arch"}
    data = merge(merge(preset.train, own), preset.sizes[size].train)
    return strict.build(Train, data, f"preset {preset.name}: train of {arch} at {size}")


@dataclass
class Matched:
    """One size: its solved models and the level they were solved for."""

    models: dict[str, ModelConfig]
    rule: MatchRule

    @property
    def flops(self) -> float:
        return sum(flops(m) for m in self.models.values()) / len(self.models)

    @property
    def params(self) -> float:
        sparse = [params(m) for m in self.models.values() if m.arch.size_knob]
        return sum(sparse) / len(sparse) if sparse else self.rule.sparse_ratio * self.flops / 2


def match_rule(preset: Preset) -> MatchRule:
    return strict.build(MatchRule, preset.match, f"preset {preset.name}: match")


def match_size(preset: Preset, size: str) -> Matched:
    rule = match_rule(preset)
    try:
        models = match({arch: prototype(preset, arch, size) for arch in preset.archs}, rule)
        gate(models, rule)
    except MatchError as error:
        raise UserError(f"preset {preset.name}, size {size}: {error}") from error
    return Matched(models, rule)


def matched_rows(preset: Preset, matched: dict[str, Matched]) -> list[dict[str, Any]]:
    """Rows of `matched_compute.csv`: every matched model, and the paper's narrower dense one as a comparator."""
    rows = []
    for size, group in matched.items():
        models = {name: (model, "matched") for name, model in group.models.items()}
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
                    "flops_mismatch": cost.flops / group.flops - 1,
                    "params_mismatch": cost.params / group.params - 1 if sparse else None,
                    "memory_share": cost.memory_share,
                    "bytes_b1": round(cost.bytes(1, 2)),
                    "bytes_b64": round(cost.bytes(64, 2)),
                    "trained": name in preset.grid.archs and size in preset.grid.sizes,
                }
            )
    return rows


def relative(value: Any, field: str, now: Any, model: ModelConfig, grid: dict[str, ModelConfig], arch: str) -> Any:
    """What a delta's value means in this model, so that one chain serves all sizes.

    "d_model/2" is a share of the width, "x2" twice the present value, "grid" what the preset's own model of this
    architecture has, "grid:ultramem" what that architecture's has.
    """
    found = RELATIVE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    if found["part"]:
        return model.d_model // int(found["part"])
    if found["times"]:
        return type(now)(float(found["times"]) * now)
    return plain(grid[found["arch"] or arch].arch).get(field)


def apply(model: ModelConfig, train: Train, rule: MatchRule, changes: dict[str, Any], where: str, grid=None, arch=""):
    """`changes` laid on architecture, `train.` or `match.` fields."""
    parts = {"arch": plain(model.arch), "train": plain(train), "match": plain(rule)}
    for key, value in changes.items():
        part, _, name = key.rpartition(".")
        fields = parts.get(part or "arch")
        if fields is None:
            raise UserError(f"{where}: {key!r}: a delta sets fields of the architecture, or of train. or match.")
        strict.check_keys({name: value}, fields, f"{where} ({part or model.arch.name})")
        value = relative(value, name, fields[name], model, grid or {}, arch)
        fields[name] = value
    return (
        dataclasses.replace(model, arch=build_arch(parts["arch"], where)),
        strict.build(Train, parts["train"], where),
        strict.build(MatchRule, parts["match"], where),
    )


def tuned(preset: Preset, model: ModelConfig, arch: str, size: str, setting: dict[str, Any]) -> tuple[ModelConfig, Train]:
    """The matched model and the preset's recipe with one tuning setting on them, whatever `recipes` says."""
    where = f"tuning.yaml: {arch}"
    own = {key.removeprefix("train."): value for key, value in setting.items() if key.startswith("train.")}
    fields = {key: value for key, value in setting.items() if not key.startswith("train.")}
    known = plain(model.arch)
    strict.check_keys(fields, known, where)
    train = strict.build(Train, merge(merge(preset.train, preset.sizes[size].train), own), where)
    return dataclasses.replace(model, arch=build_arch(known | fields, where)), train


def chain_arms(chain: Chain) -> list[tuple[Step, list[Step]]]:
    """Each row of a chain with the deltas, base first, that make it."""
    arms = [(chain.base, [chain.base])]
    for i, step in enumerate(chain.steps):
        if chain.kind == "cumulative":
            arms.append((step, [chain.base, *chain.steps[: i + 1]]))
        elif chain.kind == "sweep":
            arms.append((step, [chain.base, step]))
        elif step.id in (chain.only or step.id):
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
    keep = {knob for knob in ("width_knob", "size_knob") if knob.split("_")[0] not in chain.knobs}
    target_params = group.params * rule.sparse_ratio / group.rule.sparse_ratio
    solved = solve_sizes(model, group.flops * rule.flops_ratio / group.rule.flops_ratio, target_params)
    kept = {getattr(model.arch, knob): getattr(model.arch, getattr(model.arch, knob)) for knob in keep}
    return arch, dataclasses.replace(solved, arch=dataclasses.replace(solved.arch, **kept)) if kept else solved, train


def resolve(preset: Preset, chains: dict[str, Chain], results: Path) -> tuple[dict, dict[str, RunConfig]]:
    """The grid as JSON-able data, and the runs by name.

    Raises:
        UserError: a config that does not fit, models that cannot be matched, or a delta that changes nothing.
    """
    data = str(results / "data" / data_key(preset))
    size = preset.chain_size or preset.grid.sizes[0]
    matched = {name: match_size(preset, name) for name in dict.fromkeys((*preset.grid.sizes, size))}
    runs: dict[str, RunConfig] = {}
    by_sha: dict[str, str] = {}

    def add(run: str, arch: str, size: str, seed: int, model: ModelConfig, train: Train) -> str:
        cfg = RunConfig(
            run=run, preset=preset.name, arch=arch, size=size, seed=seed, data=data, model=model, train=train
        )
        if cfg.sha not in by_sha:
            by_sha[cfg.sha] = run
            runs[run] = cfg
        return by_sha[cfg.sha]

    grid = [
        add(f"{arch}-{size}-s{seed}", arch, size, seed, matched[size].models[arch], recipe(preset, arch, size))
        for size in preset.grid.sizes
        for arch in preset.grid.archs
        for seed in preset.grid.seeds
    ]
    tuning = []
    for arch, settings in load_tuning().items():
        for i, setting in enumerate(settings if arch in preset.archs else ()):
            model, train = tuned(preset, matched[size].models[arch], arch, size, setting)
            run = add(f"tuning.{arch}.{i}-{size}-s{preset.chain_seeds[0]}", arch, size, preset.chain_seeds[0], model, train)
            tuning.append(
                {
                    "arch": arch,
                    "setting": json.dumps(setting),
                    "lr": train.lr,
                    "value_lr_multiplier": getattr(model.arch, "value_lr_multiplier", None),
                    "init": getattr(model.arch, "init", None),
                    "run": run,
                }
            )
    arms = []
    for name, chain in chains.items():
        known = {chain.base.arch, *(step.arch for step in chain.steps if step.arch)}
        if not known <= set(preset.archs):
            continue
        for order, (step, deltas) in enumerate(chain_arms(chain)):
            where = f"ablations.yaml: {name}"
            try:
                arch, model, train = resolve_arm(preset, matched[size], size, chain, deltas, where)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"preset {preset.name}, {where}, step {step.id}: {error}") from error
            for seed in preset.chain_seeds:
                run = add(f"{name}.{step.id}-{size}-s{seed}", arch, size, seed, model, train)
                arms.append(
                    {
                        "chain": name,
                        "kind": chain.kind,
                        "step": step.id,
                        "order": order,
                        "label": step.label,
                        "set": json.dumps(step.set),
                        "run": run,
                    }
                    | {f"paper_{key}": value for key, value in step.paper.items()}
                )
    entries = {
        run: {
            "arch": cfg.arch,
            "size": cfg.size,
            "seed": cfg.seed,
            "sha": cfg.sha,
            "source": training_source(arch_module(cfg.model.arch.name)),
            "tokens": cfg.train.steps * cfg.train.batch_size * cfg.train.seq_len,
            "flops_per_token": flops(cfg.model),
            "params": cfg.model.cost().params,
            "threads": cfg.train.threads,
            "workers": cfg.train.workers,
        }
        for run, cfg in runs.items()
    }
    plan = {
        "preset": preset.name,
        "data": data,
        "data_config": preset.data,
        "grid": grid,
        "runs": entries,
        "arms": arms,
        "tuning": tuning,
        "matched": matched_rows(preset, matched),
        "chains": list(preset.chains),
        "measure": preset.measure,
    }
    return plan, runs


def data_key(preset: Preset) -> str:
    return f"{preset.data['corpus']}-{preset.data['vocab_size']}-{sha(preset.data)[:6]}"


def write_if_changed(path: Path, text: str) -> None:
    """Leaves an equal file, and so its time stamp, alone."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_grid(name: str, overrides: dict[str, Any], results: Path, key: str = "") -> dict:
    preset = load_preset(name, overrides)
    plan, runs = resolve(preset, load_chains(), results)
    folder = results / name
    for run, cfg in runs.items():
        text = yaml.safe_dump(cfg.as_dict(), sort_keys=False)
        write_if_changed(folder / "runs" / run / "config.yaml", text)
    write_if_changed(folder / "grid.json", json.dumps(plan | {"key": key}, indent=1))
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--overrides", default="{}", help="JSON of --config values")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--key", default="", help="what the caller recognises this grid by")
    args = parser.parse_args()
    plan = write_grid(args.preset, json.loads(args.overrides), args.results, args.key)
    worst = max((abs(row["flops_mismatch"]) for row in plan["matched"] if row["role"] == "matched"), default=0.0)
    print(f"{args.preset}: {len(plan['runs'])} runs; FLOPs within {worst:.2%} of their mean at every size")


if __name__ == "__main__":
    errors.run(main)
