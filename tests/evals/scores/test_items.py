"""Scores of items: standard errors, paired differences, facts of the corpus, perplexity."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_sets import corpus
from scored_models import SEQ_LEN, TEXT

from evals.records.errors import UserError
from evals.records.shards import load_shards
from evals.scores import facts, items, perplexity
from evals.scores.items import stderr
from evals.scores.tasks import utils


def test_score_functions():
    """Longest choice: total -6, per character -6/10; shortest: -4, -4/3. Bits per byte count the leading space."""
    doc = {"choices": ["ab", "abcdefghi"], "gold": 1}
    results = [(-4.0, False), (-6.0, False)]
    assert utils.by_sum(doc, results)["acc"] == 0.0
    assert utils.by_character(doc, results)["len_norm"] == 1.0
    assert utils.by_character(doc, results)["gold_bpb"] == pytest.approx(6 / math.log(2) / 10)
    answered = {"gold_bpb": pytest.approx(3 / math.log(2) / 3), "acc": 0.0}
    assert utils.answer({"answer": "é"}, [(-3.0, False)]) == answered
    known = utils.closed_book(doc | {"n_values": 8}, [(-9.0, False), (-math.log(2), False)])
    assert known == {"acc": 1.0, "bits_known": pytest.approx(2.0)}


def test_stderr_of_independent_and_of_repeated_items():
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    assert stderr(values, list(range(6))) == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    repeated = np.repeat(values, 7)
    assert stderr(repeated, list(np.repeat(np.arange(6), 7))) == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    assert stderr(np.array([1.0]), [0]) is None


def frame(values, task="t", clusters=None, correct=True):
    names = [f"i{number}" for number in range(len(values))]
    columns = {"task": task, "item": names, "cluster": clusters or names, "value": values, "correct": correct}
    return pd.DataFrame(columns).sample(frac=1, random_state=0)


def test_paired_difference_by_hand():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 40)  # what makes an item hard is the same for both
    x, y = hard + rng.normal(0, 0.1, 40), hard + 0.3 + rng.normal(0, 0.1, 40)
    a, b = frame(x), frame(y).iloc[:30]
    shared = [int(name[1:]) for name in b.item]
    d = (x - y)[shared]
    half = 2.0452296 * d.std(ddof=1) / math.sqrt(30)  # t of 29 degrees of freedom
    gap = items.paired(a, b, ["t"])
    assert (gap.value, gap.low, gap.high, gap.n) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half, 30))
    assert gap.high < 0  # which the items' own spread would hide
    other = frame(x[:10], "u/1")
    two = items.paired(pd.concat([a, other]), pd.concat([b, frame(x[:10] + 1, "u/1")]), ["t", "u"])
    assert two.value == pytest.approx((d.mean() - 1) / 2)
    repeated = [frame(np.repeat(v[:30], 7), clusters=[f"q{n}" for n in np.repeat(np.arange(30), 7)]) for v in (x, y)]
    again = items.paired(*repeated, ["t"])
    d = (x - y)[:30]
    assert again.high - again.value == pytest.approx(2.0452296 * d.std(ddof=1) / math.sqrt(30))
    right = items.paired(frame(x, correct=True), frame(y, correct=False), ["t"], column="correct")
    assert (right.value, right.n) == (1.0, 40)
    with pytest.raises(UserError, match="no common item"):
        items.paired(frame(x, correct=None), frame(y, correct=None), ["t"], column="correct")


def test_corpus_facts(tmp_path, tokenizer):
    items = facts.items(corpus(tmp_path, tokenizer), 40)
    assert {item["level"] for item in items} == {"wiki_lead", "wiki_lead unseen"}
    for item in items:
        number = int(item["context"][1:-1])
        assert item["choices"][item["gold"]] == f" a{number} g{number % 2}"
        assert len(set(item["choices"])) == 4
        assert {choice[-2:] for choice in item["choices"]} == {f"g{number % 2}"}
        assert (number >= 100) == (item["level"] == "wiki_lead unseen")


def test_perplexity(tmp_path, tokenizer, uniform, lm):
    shards = load_shards(corpus(tmp_path, tokenizer))
    n_tokens = len(shards.test["wiki_lead"])
    rows = {(row["task"], row["metric"]): row for row in perplexity.rows(uniform, shards)}
    loss, bits = rows["perplexity test/wiki_lead", "loss_per_token"], rows["perplexity test/wiki_lead", "bits_per_byte"]
    assert loss["value"] == pytest.approx(math.log(tokenizer.get_vocab_size())) == pytest.approx(loss["chance"])
    assert bits["value"] == pytest.approx(math.log2(tokenizer.get_vocab_size()) * n_tokens / len(TEXT.encode()))
    assert rows["perplexity test/all", "bits_per_byte"]["value"] == pytest.approx(bits["value"])
    assert {metric for (_, metric), row in rows.items() if row["primary"]} == {"bits_per_byte"}
    kept = []
    perplexity.rows(lm, shards, ["test"], kept=kept)

    found = {row["task"]: row for row in perplexity.rows(lm, shards, ["test"]) if row["metric"] == "loss_per_token"}
    n = (n_tokens - 1) // SEQ_LEN
    windows = torch.tensor(
        np.stack([shards.test["wiki_lead"][i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(n)]).astype(int)
    )
    expected = torch.nn.functional.cross_entropy(lm.model.logits(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    assert found["perplexity test/wiki_lead"]["value"] == pytest.approx(expected.item(), abs=1e-9)
    assert found["perplexity test/wiki_lead"]["n"] == n == len(kept)
    tokens_per_byte = n_tokens / len(TEXT.encode())
    mean_bits = np.mean([item["value"] for item in kept])
    assert mean_bits == pytest.approx(expected.item() * tokens_per_byte / math.log(2), abs=1e-9)
    with pytest.raises(UserError, match="shorter than 48 tokens"):
        perplexity.rows(lm, shards, n_tokens=10)
