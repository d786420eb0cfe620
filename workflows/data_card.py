"""What is told of a prepared corpus: counts of its documents by source, and what was left out of it."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from evals.records.shards import HELDOUT, TOKEN
from evals.records.sources import SOURCES, headline
from workflows.contamination import Contamination
from workflows.corpus import pins_of

MIXED = "memory_tasks"  # the source of the synthetic documents


@dataclass
class Ledger:
    """What happened to the documents, per source."""

    kept: dict[str, dict[str, Counter]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))
    duplicates: Counter = field(default_factory=Counter)
    contaminated: Counter = field(default_factory=Counter)
    contaminated_by_set: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    heldout_surplus: Counter = field(default_factory=Counter)
    memory_tasks: Counter = field(default_factory=Counter)  # training documents by task


def meta(ledger: Ledger, contamination: Contamination, config: dict, segments: dict, vocab_size: int) -> dict:
    """What meta.json holds but for its checksums; `config` is the `DataConfig` as a mapping, with the sources that it chose."""
    pins = pins_of(config["corpus"])
    sources = {
        source: {
            **pins[source],
            "headline": headline(pins[source]),
            **_counts(ledger, source),
            "duplicates_removed": ledger.duplicates[source],
            "contaminated_removed": ledger.contaminated[source],
            "heldout_surplus_removed": ledger.heldout_surplus[source],
        }
        for source in config["sources"]
    }
    if config["memory_tasks"]:
        licence = "none needed: synthetic, made by evals/scores/memory"
        sources[MIXED] = {"licence": licence, "headline": False, **_counts(ledger, MIXED)}
    return {
        "config": config,
        "vocab_size": vocab_size,
        "end_of_text": 0,
        "dtype": TOKEN.str,
        "sources": sources,
        "segments": segments,
        "memory_tasks": {task: {"documents": count} for task, count in sorted(ledger.memory_tasks.items())},
        "contamination": {
            "evaluation": {key: value for key, value in SOURCES["evaluation"].items() if key != "sets"},
            "sets": {
                name: {"items": items, "training_documents_removed": dict(ledger.contaminated_by_set[name])}
                for name, items in contamination.items.items()
            },
        },
    }


def _counts(ledger: Ledger, source: str) -> dict[str, dict[str, int]]:
    kept, splits = ledger.kept[source], ("train", *HELDOUT)
    return {key: {split: kept[split][key] for split in splits} for key in ("documents", "bytes", "tokens")}
