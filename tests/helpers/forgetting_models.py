"""Tiny models of every kind, documents for them, and a school in memory, without a corpus on disk."""

import numpy as np
import torch
from scored_models import SPARSE, TEXT

from evals.forgetting.people import IGNORED
from evals.records.shards import Shards
from evals.scores.memory.bios import BioS
from models.feed_forward import DenseConfig
from models.transformer import ModelConfig
from workflows.prepare import train_bpe

ARCHS = {"dense": DenseConfig(d_ff=48)} | {config.name: config for config in SPARSE}
MEMORIES = {name: config for name, config in ARCHS.items() if name not in ("dense", "moe")}
BIOS = BioS(n_people=4, exposures=2)


def build(arch, vocab_size=64, seq_len=48, seed=0):
    torch.manual_seed(seed)
    return ModelConfig(vocab_size=vocab_size, d_model=32, n_layers=2, n_heads=2, seq_len=seq_len, arch=arch).build()


def documents(lengths, seed=0, vocab_size=64):
    """A padded batch of random documents of some lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocab_size, (len(lengths), max(lengths) + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, length in enumerate(lengths):
        targets[row, length:] = IGNORED
    return tokens[:, :-1].contiguous(), targets


def tokenizer():
    bios = [" ".join(sentences) for sentences in BioS(n_people=40, exposures=1).biographies(0)]
    return train_bpe([TEXT, *bios], 600)


def shards(made, path="made up"):
    """A corpus of one source of TEXT, with biographies of BIOS mixed in."""
    text = np.array(made.encode(TEXT * 12).ids, np.uint16)
    bios = [[0, *made.encode(" ".join(sentences)).ids] for sentences in BIOS.biographies(0)]
    train = np.concatenate([text, *(np.array(document, np.uint16) for document in bios)])
    sources = {"a": {"tokens": {"train": 300}}, "b": {"tokens": {"train": 100}}, "c": {"headline": False}}
    meta = {"sources": sources, "memory_tasks": {"bios": 1}, "config": {"align": 64}}
    heldout = {"a": text[:400], "b": text[37:300], "c": text[:5]}
    return Shards(path, train, heldout, {name: tokens[::-1].copy() for name, tokens in heldout.items()}, meta)
