"""How a run is spread over its workers: part of a preset, never of a run's config; imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from evals.records import strict
from evals.records.errors import UserError
from evals.records.recipe import Count, CountOrNone, Positive


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """The result does not depend on it but for rounding, so a run may be continued with another one.

    Args:
        nodes: machines that the workers of a run lie on, equally many on each; a cluster's executor starts them.
        engine: "replicated", every worker holds everything; "sharded", the dense part is sharded over the workers (FSDP2),
            value tables and experts lie in parts.
        values: how the sharded engine partitions value tables, "number" (rows) or "dimension" (columns).
        recompute: the sharded engine keeps of attention, FFN and memory layers their inputs alone and runs them again for
            the backward pass.
        gather: type in which the sharded engine gathers weights.
        timeout_s: seconds that a collective may take; beyond them a worker counts as hanging.
        restarts: times that torchrun starts the workers of a job again; they continue from the last checkpoint.
        async_save: the sharded engine trains on while a checkpoint is written.
    """

    nodes: Count = 1
    engine: Literal["replicated", "sharded"] = "replicated"
    values: Literal["number", "dimension"] = "number"
    recompute: bool = False
    gather: Literal["fp32", "bf16"] = "fp32"
    timeout_s: Positive = 600.0
    restarts: CountOrNone = 0
    async_save: bool = True

    def per_node(self, workers: int) -> int:
        """Workers on each node.

        Raises:
            UserError: they are not equally many.
        """
        if workers % self.nodes:
            raise UserError(f"nodes {self.nodes} must divide workers {workers}")
        return workers // self.nodes

    def options(self) -> list[str]:
        """What `workflows.worker` is told: each field that it needs and that is not the default."""
        base, told = Parallel(), []
        if self.engine == "sharded":
            told += ["--engine", self.engine]
            told += ["--values", self.values] if self.values != base.values else []
            told += ["--recompute"] if self.recompute else []
            told += ["--gather", self.gather] if self.gather != base.gather else []
            told += [] if self.async_save else ["--no-async-save"]
        return told + (["--timeout", f"{self.timeout_s:g}"] if self.timeout_s != base.timeout_s else [])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The words of `Parallel.options`."""
    base, kinds = Parallel(), strict.kinds(Parallel)
    for name, text in (
        ("engine", "everything everywhere, or parts"),
        ("values", "sharded: tables by rows or columns"),
        ("gather", "sharded: type in which weights are gathered"),
    ):
        parser.add_argument(f"--{name}", choices=get_args(kinds[name]), default=getattr(base, name), help=text)
    parser.add_argument("--recompute", action="store_true", help="sharded: run layers again for gradients, keep their inputs")
    waits = "sharded: wait until a checkpoint is written"
    parser.add_argument("--no-async-save", dest="async_save", action="store_false", help=waits)
    seconds = "seconds that workers wait for one that says nothing"
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=base.timeout_s, help=seconds)


def told(args: argparse.Namespace) -> Parallel:
    """The settings that `add_options` has read; what only the launcher needs is left at its default."""
    return Parallel(**{field.name: getattr(args, field.name) for field in fields(Parallel) if hasattr(args, field.name)})


def spread(given: dict[str, Any], workers: Any, where: str) -> Parallel:
    """The settings of a preset's fields for so many workers.

    Raises:
        UserError: an unknown field or value, or nodes that do not divide the workers; names `where`.
    """
    found = strict.build(Parallel, given, where)
    try:
        found.per_node(strict.convert(Count, workers, "train.workers"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return found
