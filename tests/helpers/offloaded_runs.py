"""A results folder with a corpus, finished runs of small models and a preset that asks for tiny tables."""

import json

import numpy as np
import yaml
from exported_runs import finished, prepared
from memory_layers import MODELS, model_of

from evals.decode.settings import Latency
from evals.offload.settings import Offload
from evals.records.runs import plain
from evals.records.shards import HELDOUT, TOKEN
from evals.records.sources import sha256_file

RUNS = {"ultramem-xs-s0": "ultramem", "v2-xs-s0": "v2", "dense-xs-s0": "dense", "hybrid-xs-s0": "hybrid"}
SETTINGS = Offload(sizes_gb=(0.002,), context=8, tokens=10, fill_s=2.0, loss_tokens=128, trace_tokens=256)
SOURCES = {"wiki": 600, "words": 400, "copies": 500}  # training tokens; the last is no headline


def write_corpus(folder, vocab):
    """Tokens that are skewed as text's are, of three sources."""
    rng, names = np.random.default_rng(0), list(SOURCES)
    tokens = {split: {name: 200 + 40 * place for place, name in enumerate(names)} for split in HELDOUT}
    tokens["train"] = SOURCES
    meta = {"sources": {}, "segments": {}, "sha256": {}, "config": {}}
    for name in names:
        counts = {split: tokens[split][name] for split in tokens}
        meta["sources"][name] = {"tokens": counts, "bytes": counts, "headline": name != "copies"}
    for split, counts in tokens.items():
        ends = np.cumsum([0, *counts.values()]).tolist()
        meta["segments"][split] = {name: [ends[i], ends[i + 1]] for i, name in enumerate(names)}
        (rng.random(ends[-1]) ** 3 * vocab).astype(TOKEN).tofile(folder / f"{split}.bin")
        meta["sha256"][f"{split}.bin"] = sha256_file(folder / f"{split}.bin")
    (folder / "meta.json").write_text(json.dumps(meta))


def write_results(folder):
    """Corpus, runs and what a resolved preset leaves there."""
    vocab = prepared(folder / "data").get_vocab_size()
    write_corpus(folder / "data", vocab)
    for run, name in RUNS.items():
        finished(folder / "runs" / run, folder / "data", model_of(MODELS[name], vocab_size=vocab))
    timed = {"arch": "ultramem", "sparse_ratio": 6.0, "model": plain(model_of(MODELS["ultramem"], vocab_size=vocab))}
    latency = {"settings": plain(Latency(size="xs", archs=("ultramem",))), "models": [timed]}
    (folder / "latency.yaml").write_text(yaml.safe_dump(latency))
    asked = plain(SETTINGS) | {"cache": str(folder / "cache")}
    (folder / "grid.json").write_text(json.dumps({"measure": {"offload": asked}}))
    return folder
