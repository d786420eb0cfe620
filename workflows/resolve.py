"""Presets and chains -> complete, validated, compute-matched run configs, written before anything runs.

    python -m workflows.resolve --preset cpu

`results/{preset}/grid.json` lists runs, ablation arms and the matched-compute table; `runs/{run}/config.yaml` is all that
the trainer and every later stage read. Runs with equal configs are one run, whatever chain or grid asked for them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import yaml

from evals.records import errors, options, strict
from evals.records.errors import UserError
from evals.records.files import whole
from evals.records.provenance import sha, training_source
from evals.records.recipe import Train
from evals.records.runs import RunConfig, plain
from evals.records.store import working_folder
from models import arch_module
from models.match import flops
from models.transformer import ModelConfig
from workflows.ablate import architectures, chain_arms, knob_values, resolve_arm, tuned, tuning_settings
from workflows.chains import Chain, load_chains, load_tuning
from workflows.counting import counting_rows
from workflows.matched import decode_models, match_size, matched_rows, recipe
from workflows.presets import Preset, load_preset


def resolve(preset: Preset, chains: dict[str, Chain], results: Path, tune: bool = True) -> tuple[dict, dict[str, RunConfig]]:
    """The grid as JSON-able data, and the runs by name; without those of the tuning target where they are not wanted.

    Raises:
        UserError: a config that does not fit, models that cannot be matched, or a delta that changes nothing.
    """
    data = str(results / "data" / data_key(preset))
    size = preset.chain_size or preset.grid.sizes[0]
    elsewhere = (*preset.chain_sizes.values(), *filter(None, (preset.tuning_size, preset.transfer_size)))
    wanted = (*preset.grid.sizes, size, *elsewhere)
    matched = {name: match_size(preset, name) for name in dict.fromkeys(wanted)}
    runs: dict[str, RunConfig] = {}
    by_sha: dict[str, str] = {}

    def add(run: str, arch: str, size: str, seed: int, model: ModelConfig, train: Train) -> str:
        cfg = RunConfig(run=run, preset=preset.name, arch=arch, size=size, seed=seed, data=data, model=model, train=train)
        if cfg.sha not in by_sha:
            by_sha[cfg.sha] = run
            runs[run] = cfg
        return by_sha[cfg.sha]

    grid = [
        add(f"{arch}-{where}-s{seed}", arch, where, seed, matched[where].models[arch], recipe(preset, arch, where))
        for where, arch, seed in preset.grid.cells()
    ]
    tuning, sweep = [], load_tuning()
    for run, arch, where, setting in tuning_settings(preset, sweep) if tune else ():
        seed = preset.chain_seeds[0]
        model, train = tuned(preset, matched[where].models[arch], arch, where, setting)
        tuning.append(
            {
                "arch": arch,
                "size": where,
                "d_model": model.d_model,
                "setting": json.dumps(setting),
                "knobs": knob_values(sweep[arch], model, train),
                "lr": train.lr,
                "weight_decay": train.weight_decay,
                "value_lr_multiplier": getattr(model.arch, "value_lr_multiplier", None),
                "init": getattr(model.arch, "init", None),
                "seed": seed,
                "run": add(f"{run}-{where}-s{seed}", arch, where, seed, model, train),
            }
        )
    arms = []
    if chains:
        strict.check_keys(preset.step_rates, chains, f"{preset.name}: step_rates")
    for name, chain in chains.items():
        if not architectures(chain) <= set(preset.archs):
            continue
        at = preset.chain_sizes.get(name, size)
        own_rates = preset.step_rates.get(name, {})
        strict.check_keys(own_rates, [row.id for row in (chain.base, *chain.steps)], f"{preset.name}: step_rates.{name}")
        for order, (step, deltas) in enumerate(chain_arms(chain)):
            where = f"ablations.yaml: {name}"
            try:
                arch, model, train = resolve_arm(preset, matched[at], at, chain, deltas, where)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"preset {preset.name}, {where}, step {step.id}: {error}") from error
            rates = own_rates.get(step.id) or (preset.chain_rates if chain.tuned else ()) or (train.lr,)
            for (i, lr), seed in itertools.product(enumerate(rates), chain.seeds or preset.chain_seeds):
                rate = f".lr{i}" if len(rates) > 1 else ""
                recipe_at = dataclasses.replace(train, lr=lr)
                run = add(f"{name}.{step.id}{rate}-{at}-s{seed}", arch, at, seed, model, recipe_at)
                arms.append(
                    {
                        "chain": name,
                        "kind": chain.kind,
                        "step": step.id,
                        "order": order,
                        "label": step.label,
                        "set": json.dumps(step.set),
                        "lr": lr,
                        "run": run,
                    }
                    | {f"paper_{key}": value for key, value in step.paper.items()}
                )
    spreads = {name: plain(preset.spread(name)) for name in preset.sizes}
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
            "parallel": spreads[cfg.size],
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
        "counting": counting_rows(preset, matched),
        "chains": list(preset.chains),
        "measure": plain(preset.measure),
    }
    return plan, runs


def data_key(preset: Preset) -> str:
    return f"{preset.data['corpus']}-{preset.data['vocab_size']}-{sha(preset.data)[:6]}"


def as_yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def write_if_changed(path: Path, text: str) -> None:
    """Leaves an equal file, and so its time stamp, alone."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(text)


def write_grid(name: str, overrides: dict[str, Any], results: Path, key: str = "", grid_only: bool = False) -> dict:
    """Writes what `resolve` makes of a preset; `grid_only` leaves out chains and tuning, which take most of the time."""
    preset = load_preset(name, overrides)
    plan, runs = resolve(preset, {} if grid_only else load_chains(), results, tune=not grid_only)
    folder = working_folder(results, name)
    for run, cfg in runs.items():
        write_if_changed(folder / "runs" / run / "config.yaml", as_yaml(cfg.as_dict()))
    if preset.measure.latency:
        decode = {"preset": name, "settings": preset.measure.latency, "models": decode_models(preset)}
        write_if_changed(folder / "latency.yaml", as_yaml(plain(decode)))
    write_if_changed(folder / "grid.json", json.dumps(plan | {"key": key}, indent=1))
    return plan


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--preset", required=True, help="name of a preset, such as cpu")
    parser.add_argument("--overrides", default="{}", help="JSON of --config values")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="folder that gets {preset}/grid.json and configs (default: %(default)s)",
    )
    parser.add_argument("--grid-only", action="store_true", help="leave out the runs of ablation chains and of tuning")
    parser.add_argument("--key", default="", help="what the caller recognises this grid by")
    args = parser.parse_args()
    plan = write_grid(args.preset, json.loads(args.overrides), args.results, args.key, args.grid_only)
    worst = max((abs(row["flops_mismatch"]) for row in plan["matched"] if row["role"] == "matched"), default=0.0)
    print(f"{args.preset}: {len(plan['runs'])} runs; FLOPs within {worst:.2%} of their mean at every size")


if __name__ == "__main__":
    errors.run(main)
