"""Presets as the YAML files state them; imports no torch, so that the Snakefile parses fast.

A preset is a set of runs: sizes x architectures x seeds, the recipe that trains them, and what is measured afterwards.
`workflows.resolve` turns it and the chains (`workflows.chains`) into complete run configs.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from evals.decode.settings import Latency
from evals.offload.settings import Offload
from evals.records import strict
from evals.records.errors import UserError
from evals.records.recipe import Count, CountOrNone, Names, Positive, Seeds, Train
from models import arch_module
from workflows.corpus import corpora
from workflows.parallel.settings import Parallel, spread

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Size:
    """One backbone.

    Args:
        token_scale: of the preset's tokens, so that tokens can grow with activated parameters.
        train: fields of `Train` at this size.
        archs: fields of single architectures at this size (placements depend on depth); parallel: of `Parallel`.
    """

    d_model: Count
    n_layers: Count
    n_heads: Count
    n_kv_heads: Count | None = None
    token_scale: Positive = 1.0
    train: dict[str, Any] = field(default_factory=dict)
    archs: dict[str, dict[str, Any]] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Further seeds of a part of the grid, from which the noise between seeds is known."""

    sizes: Names
    archs: Names
    seeds: Seeds


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every size with every architecture and seed, and `repeats`; of those only what `sizes` and `archs` hold is run."""

    sizes: Names
    archs: Names
    seeds: Seeds
    repeats: tuple[Repeat, ...] = ()

    def cells(self) -> list[tuple[str, str, int]]:
        """(size, architecture, seed) of every run, each once."""
        cells = list(itertools.product(self.sizes, self.archs, self.seeds))
        for repeat in self.repeats:
            cells += itertools.product(
                [size for size in repeat.sizes if size in self.sizes],
                [arch for arch in repeat.archs if arch in self.archs],
                repeat.seeds,
            )
        return list(dict.fromkeys(cells))


@dataclass(frozen=True, kw_only=True)
class Evals:
    """What `evals.scores.harness` runs on every trained model of the grid.

    Args:
        suites: NAME or NAME:ITEMS, names of `evals.scores.harness.SUITES` or of tasks, with a limit of their own.
        limit: documents per task; 0 takes all.
        perplexity_tokens: tokens of each corpus source and held-out split; 0 takes all.
        seeds: of the runs that are scored; None is all.
        together: runs of a size that one process scores, which makes the prompts once; 1 scores each when it is trained.
        online: lm-eval's own tasks, which need the internet.
    """

    suites: tuple[str, ...] = ("perplexity", "open", "answers", "memory", "facts")
    limit: CountOrNone = 100
    perplexity_tokens: CountOrNone = 65536
    seeds: Seeds | None = None
    together: Count = 6
    online: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured beside training; a part that is missing is not measured by this preset."""

    latency: Latency | None = None
    evals: Evals | None = None
    offload: Offload | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset file.

    Args:
        data: what `workflows.prepare` makes (its `DataConfig`). match: `models.match.MatchRule`.
        archs: name -> {arch: class, fields...}; the knobs that the solver turns are left out.
        recipes: name -> fields of `Train` and, under `arch`, of the architecture, for that architecture alone: the
            winners of the tuning target.
        parallel: fields of `Parallel`, at every size.
        beside: of `archs`, those that are matched to the level of the others and have no say in it, so that adding one moves
            nobody else's sizes.
        decay_tokens: tokens that the recipes' weight decays are for; a run with other tokens has them in inverse proportion, so
            that their time constant is the same share of a run (arXiv 2405.13698). 0 takes them as they are.
        base_width: d_model that learning rates were tuned at, from which muP carries them to other widths
            (`models.transformer.ModelConfig`); 0 takes them as they are.
        chains: ablation chains that the default target runs; all others run when asked for.
        chain_size, chain_seeds: where and how often chains run. chain_sizes: chains that run elsewhere, by name;
            a preset with a chain_size of its own inherits none.
        chain_rates: of `tuned` chains, the learning rates that every row is trained with; its best counts. step_rates: rows
            that are trained with others, by chain and id; a preset with chain_rates of its own inherits none.
        tuning_size, tuning_tokens: where the tuning target runs (None: at the chains' size), with how many tokens (0: the
            preset's).
        transfer_size: where the tuning target tries some of the rates again, with as many tokens; None is nowhere.
        adopt: runs that are committed (`workflows.adopt`) are taken from there, not trained.
        gpu_jobs: jobs ask a cluster for GPUs; on one machine they use the GPUs that it has.
    """

    name: str
    about: str
    data: dict[str, Any]
    match: dict[str, Any]
    sizes: dict[str, Size]
    archs: dict[str, dict[str, Any]]
    grid: Grid
    train: dict[str, Any]
    beside: tuple[str, ...] = ()
    decay_tokens: CountOrNone = 0
    base_width: CountOrNone = 0
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    chains: tuple[str, ...] = ()
    chain_size: str | None = None
    chain_sizes: dict[str, str] = field(default_factory=dict)
    chain_seeds: Seeds = (0,)
    chain_rates: tuple[Positive, ...] = ()
    step_rates: dict[str, dict[str, tuple[Positive, ...]]] = field(default_factory=dict)
    tuning_size: str | None = None
    tuning_tokens: CountOrNone = 0
    transfer_size: str | None = None
    measure: Measure = field(default_factory=Measure)
    adopt: bool = False
    gpu_jobs: bool = False

    def __post_init__(self):
        for what, chosen, known in (
            ("data.corpus", [self.data.get("corpus")], corpora()),
            ("grid.sizes", self.grid.sizes, self.sizes),
            ("grid.archs", self.grid.archs, self.archs),
            ("grid.repeats", [size for repeat in self.grid.repeats for size in repeat.sizes], self.sizes),
            ("grid.repeats", [arch for repeat in self.grid.repeats for arch in repeat.archs], self.archs),
            ("beside", self.beside, self.archs),
            ("recipes", self.recipes, self.archs),
            ("chain_size", [self.chain_size] if self.chain_size else [], self.sizes),
            ("chain_sizes", self.chain_sizes.values(), self.sizes),
            ("tuning_size", [self.tuning_size] if self.tuning_size else [], self.sizes),
            ("transfer_size", [self.transfer_size] if self.transfer_size else [], self.sizes),
            ("measure.latency.size", [self.measure.latency.size] if self.measure.latency else [], self.sizes),
            ("measure.latency.archs", self.measure.latency.archs if self.measure.latency else (), self.archs),
            ("measure.offload.arch", [self.measure.offload.arch] if self.measure.offload else [], self.archs),
        ):
            for name in chosen:
                if name not in known:
                    raise UserError(f"{what}: {strict.shown(name)} is not one of {', '.join(known)}")
        for name in self.sizes:
            self.spread(name)

    def spread(self, size: str) -> Parallel:
        """How runs of a size are spread over their workers; raises as `workflows.parallel.settings.spread`."""
        own = self.sizes[size]
        workers = merge(self.train, own.train).get("workers", 1)
        return spread(self.parallel | own.parallel, workers, f"preset {self.name}: sizes.{size}: parallel")

    @property
    def layers(self) -> list[str]:
        """Modules of the architectures that the grid trains and the decode benchmark times."""
        timed = self.measure.latency.archs if self.measure.latency else ()
        return sorted({arch_module(self.archs[arch]["name"]) for arch in (*self.grid.archs, *timed)})


# What --config takes: the part of a preset that a value goes to, whose field of the same name gives its type and range.
OVERRIDES = {"tokens": "train", "precision": "train", "seeds": "grid", "archs": "grid", "sizes": "grid", "corpus": "data"}
OVERRIDES["adopt"] = ""  # of the preset itself
PARTS = {"train": Train, "grid": Grid, "": Preset}


def merge(base: Any, over: Any) -> Any:
    """`over` laid on `base`: mappings merge key by key, everything else replaces."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merge(base[key], value) if key in base else value for key, value in over.items()}
    return over


def read_yaml(path: Path) -> dict:
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UserError(f"{path.name} does not exist in {path.parent.name}; there are {known}")
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def preset_names() -> list[str]:
    return sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in ("ablations", "tuning"))


def raw_preset(name: str) -> dict:
    if name not in preset_names():
        raise UserError(f"preset {strict.shown(name)} is not one of {', '.join(preset_names())}")
    data = read_yaml(CONFIGS / f"{name}.yaml")
    if not (parent := data.pop("extends", None)):
        return data
    base = raw_preset(parent)
    for own, follows in (("chain_size", "chain_sizes"), ("chain_rates", "step_rates")):
        if own in data:
            base.pop(follows, None)
    return merge(base, data)


def of_corpus(data: dict[str, Any], corpus: str) -> dict[str, Any]:
    """The data config with another corpus: its own sources, and of a streamed one as much text as `pypi` has."""
    if corpus == data["corpus"]:
        return data
    data = {key: value for key, value in data.items() if key != "sources"} | {"corpus": corpus}
    return data if corpus == "pypi" else {"limit_bytes": 60_000_000} | data


def load_preset(name: str, overrides: dict[str, Any] | None = None) -> Preset:
    """A preset with the command line's `--config` values laid on it.

    Raises:
        UserError: an unknown preset, key or value; names it and says what is allowed.
    """
    data = raw_preset(name) | {"name": name}
    overrides = {k: v for k, v in (overrides or {}).items() if k != "preset"}
    strict.check_keys(overrides, ["preset", *OVERRIDES], "--config")
    for key, value in overrides.items():
        value = override(key, value)
        if key == "corpus":
            data["data"] = of_corpus(data["data"], value)
        else:
            data = merge(data, {part: {key: value}} if (part := OVERRIDES[key]) else {key: value})
    strict.build(Train, data["train"], f"preset {name}: train")
    return strict.build(Preset, data, f"preset {name}")


def override(key: str, value: Any) -> Any:
    """A --config value as its field takes it. Snakemake leaves the numbers of a list and `false` as text, 1e6 becomes a float.

    Raises:
        UserError: another type, or out of range.
    """
    part, where = OVERRIDES[key], f"--config {key}"
    hint = strict.kinds(PARTS[part])[key] if part in PARTS else Literal[tuple(corpora())]
    if part == "grid" and not isinstance(value, (list, tuple)):
        value = [value]
    if key == "seeds":
        value = [int(item) if isinstance(item, str) and re.fullmatch("[0-9]{1,20}", item) else item for item in value]
    if key == "tokens" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is bool and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    return strict.convert(hint, value, where)
