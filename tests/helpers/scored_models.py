"""A small language model, requests for it, and an oracle that scores one request at a time."""

import math
from types import SimpleNamespace

import torch

from models.feed_forward import DenseConfig
from models.moe import MoEConfig
from models.pkm import PKMConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config

TEXT = (
    "The cat sat on the mat and the dog sat on the log. A cat is a small animal; a dog is an animal too.\n"
    "Where is the cat? The cat is on the mat. Where is the dog? The dog is on the log, not on the mat.\n"
)
SEQ_LEN = 48


def build(tokenizer, seed=0, arch=None, seq_len=SEQ_LEN):
    torch.manual_seed(seed)
    cfg = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        n_layers=2,
        n_heads=2,
        seq_len=seq_len,
        arch=arch or DenseConfig(d_ff=48),
    )
    model = cfg.build()
    with torch.no_grad():
        model.embedding.weight.mul_(8)  # far from uniform, so that a wrong position cannot pass for the right one
    return model.double().eval()


def ask(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def oracle(lm, context, continuation):
    """One row, no batch, no cache, float64: sum of log-probabilities and greediness of the last tokens of the text."""
    tokenizer, model = lm.tokenizer, lm.model
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = tokenizer.encode(context).ids if context else [0]
    whole = tokenizer.encode(context + continuation).ids if context else [0, *tokenizer.encode(continuation).ids]
    total, greedy = 0.0, True
    first = max(0, len(whole) - model.cfg.seq_len - 1)
    for place in range(len(before), len(whole)):
        with torch.no_grad():
            probability = model.logits(torch.tensor([whole[first:place]]))[0, -1].softmax(-1)
        total += math.log(probability[whole[place]])
        greedy &= int(probability.argmax()) == whole[place]
    return total, greedy


WORDS = TEXT.split()
CONTEXTS = [" ".join(WORDS[start : start + n]) for start, n in ((0, 1), (3, 5), (7, 14), (0, 26), (10, 44), (5, 24))]
CHOICES = [" mat", " the log", " a small animal is not a dog", " dog", " The cat is on the mat and the dog"]
PAIRS = [(context, choice) for context in CONTEXTS for choice in CHOICES]
PAIRS += [("The cat ", "sat"), ("The cat sat\n", "on the mat"), ("", "The dog"), ("  ", "dog"), ("Where", " is the cat")]
TINY = {"d_ff": 16, "n_keys": 6, "d_key": 4, "top_m": 4, "n_mem_heads": 2, "placement": ("0:1",)}
SPARSE = [
    PKMConfig(**TINY),
    UltraMemConfig(**TINY, d_value=8, query_conv=3),
    UltraMemV2Config(**TINY, d_value=8),
    MoEConfig(n_experts=4, top_k=2, d_expert=8),
]
