"""Presets and ablation chains as the YAML files state them; imports no torch, so that the Snakefile parses fast.

A preset is a set of runs: sizes x architectures x seeds, the recipe that trains them, and what is measured afterwards.
A chain is a base and a list of deltas. `workflows.resolve` turns both into complete run configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from workflows import strict
from workflows.errors import UserError

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Train:
    """The recipe.

    Args:
        tokens: training tokens; rounded up to whole steps.
        batch_size: sequences per step, over all workers.
        micro_batch: sequences that one worker's memory holds at a time; 0 is its whole share. Gradients add up, so the
            result does not depend on it but for rounding (and for a balance loss, which sees one micro-batch at a time).
        workers: data-parallel processes, started by torchrun; one GPU each.
        seq_len: tokens per sequence.
        lr: peak learning rate, reached after `warmup` (fraction of the steps), then a cosine to `lr * final_lr`.
        value_optimizer: "dense" updates every row of a value table each step (AdamW); "rows" only the rows that the step
            read (lazy AdamW: moments and decay of other rows stand still), for tables of which a step reads little.
        precision: "bf16" runs matrix products in bfloat16 under autocast, weights and optimizer stay float32.
        evaluate: times that the validation loss is measured, the end included.
        validation_tokens: tokens of each corpus source used for it.
        checkpoint_s: seconds between checkpoints.
        health_tokens: validation tokens on which a sparse layer's health is measured; 0 is never.
    """

    tokens: int
    batch_size: int
    seq_len: int
    lr: float
    micro_batch: int = 0
    workers: int = 1
    final_lr: float = 0.1
    warmup: float = 0.01
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    grad_clip: float = 1.0
    value_optimizer: Literal["dense", "rows"] = "dense"
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: int = 1
    evaluate: int = 5
    validation_tokens: int = 65536
    checkpoint_s: float = 60.0
    health_tokens: int = 2048

    def __post_init__(self):
        share = self.batch_size // self.workers
        if self.batch_size % self.workers or (self.micro_batch and share % self.micro_batch):
            raise ValueError(
                f"batch_size {self.batch_size} must split evenly over workers {self.workers} and micro_batch {self.micro_batch}"
            )

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.batch_size * self.seq_len))


@dataclass(frozen=True, kw_only=True)
class Size:
    """One backbone.

    Args:
        lr_scale: of every architecture's learning rate, which is tuned at one size; 1/width is muP's rule for Adam.
        train: fields of `Train` at this size.
        archs: fields of single architectures at this size (placements depend on depth).
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    lr_scale: float = 1.0
    train: dict[str, Any] = field(default_factory=dict)
    archs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grid:
    sizes: tuple[str, ...]
    archs: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The decode-step benchmark (`evals.latency`): untrained models of one size, matched as the trained ones are.

    Args:
        size: which of the preset's sizes; large enough that its tables dwarf the last-level cache.
        archs: which of the preset's architectures.
        match: fields of the preset's matching rule that are others here.
        context: tokens in each sequence's key-value cache.
        batches: sequences in flight.
        sparse_ratios: stored over activated parameters, for latency against sparsity at `sparsity_batches`.
        dtypes: fp32, bf16.
        threads: of a CPU measurement.
        rounds: interleaved rounds over all architectures; medians and percentiles are over rounds.
        budget_s: a batch takes no new round after this many seconds, but never fewer than three.
    """

    size: str
    archs: tuple[str, ...]
    match: dict[str, Any] = field(default_factory=dict)
    context: int = 256
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    sparse_ratios: tuple[float, ...] = ()
    sparsity_batches: tuple[int, ...] = (64,)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    threads: int = 1
    rounds: int = 9
    budget_s: float = 6.0


@dataclass(frozen=True, kw_only=True)
class Evals:
    """What `evals.harness` runs on every trained model of the grid.

    Args:
        suites: NAME or NAME:ITEMS, names of `evals.harness.SUITES` or of tasks, with a limit of their own.
        limit: documents per task; 0 takes all.
        perplexity_tokens: validation tokens per corpus source.
        online: lm-eval's own tasks, which need the internet.
    """

    suites: tuple[str, ...] = ("perplexity", "open", "answers", "memory", "facts")
    limit: int = 100
    perplexity_tokens: int = 65536
    online: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured beside training; a part that is missing is not measured by this preset."""

    latency: Latency | None = None
    evals: Evals | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset file.

    Args:
        data: what `workflows.prepare` makes (its `DataConfig`).
        match: `models.match.MatchRule`.
        archs: name -> {arch: class, fields...}; the knobs that the solver turns are left out.
        recipes: name -> fields of `Train` and, under `arch`, of the architecture, for that architecture alone: the
            winners of the tuning target.
        chains: ablation chains that the default target runs; all others run when asked for.
        chain_size, chain_seeds: where and how often chains run.
    """

    name: str
    about: str
    data: dict[str, Any]
    match: dict[str, Any]
    sizes: dict[str, Size]
    archs: dict[str, dict[str, Any]]
    grid: Grid
    train: dict[str, Any]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    chains: tuple[str, ...] = ()
    chain_size: str | None = None
    chain_seeds: tuple[int, ...] = (0,)
    measure: Measure = field(default_factory=Measure)

    def __post_init__(self):
        for what, chosen, known in (
            ("grid.sizes", self.grid.sizes, self.sizes),
            ("grid.archs", self.grid.archs, self.archs),
            ("recipes", self.recipes, self.archs),
            ("chain_size", [self.chain_size] if self.chain_size else [], self.sizes),
            ("measure.latency.size", [self.measure.latency.size] if self.measure.latency else [], self.sizes),
            ("measure.latency.archs", self.measure.latency.archs if self.measure.latency else (), self.archs),
        ):
            for name in chosen:
                if name not in known:
                    raise UserError(f"{what}: {name!r} is not one of {', '.join(known)}")


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
    """

    title: str
    kind: Literal["cumulative", "sweep", "leave-one-out"]
    base: Step
    steps: tuple[Step, ...]
    only: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ("width", "size")
    source: str = ""


def load_tuning() -> dict[str, list[dict[str, Any]]]:
    """Architecture -> settings that the tuning target tries: `train.` fields and fields of the architecture.

    Raises:
        UserError: architectures are tried unequally often; no architecture gets more care than another.
    """
    settings = read_yaml(CONFIGS / "tuning.yaml")
    counts = {arch: len(tries) for arch, tries in settings.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"tuning.yaml: every architecture is tried equally often, but the counts are {counts}")
    return settings


OVERRIDES = {"preset": str, "corpus": str, "tokens": int, "seeds": list, "archs": list, "sizes": list, "precision": str}


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
    return sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem not in ("ablations", "sources", "tuning"))


def raw_preset(name: str) -> dict:
    if name not in preset_names():
        raise UserError(f"preset {name!r} is not one of {', '.join(preset_names())}")
    data = read_yaml(CONFIGS / f"{name}.yaml")
    parent = data.pop("extends", None)
    return merge(raw_preset(parent), data) if parent else data


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
    strict.check_keys(overrides, OVERRIDES, "--config")
    for key, value in overrides.items():
        expected = OVERRIDES[key]
        if expected is list and not isinstance(value, list):
            value = [value]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise UserError(f"--config {key}: expected {expected.__name__}, found {type(value).__name__} {value!r}")
        if key in ("seeds", "archs", "sizes"):
            data = merge(data, {"grid": {key: value}})
        elif key == "corpus":
            data["data"] = of_corpus(data["data"], value)
        else:
            data = merge(data, {"train": {key: value}})
    return strict.build(Preset, data, f"preset {name}")


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
