"""The lm-eval adapter against an oracle that scores one request at a time."""

import math

import pytest
import torch
from scored_models import CONTEXTS, PAIRS, SEQ_LEN, SPARSE, TEXT, ask, build, oracle

from evals.records.errors import UserError
from evals.scores.lm import ModelLM


@pytest.mark.parametrize("batch_tokens", [1, 200, 8192])
def test_loglikelihood_equals_one_request_at_a_time(tokenizer, lm, batch_tokens):
    batched = ModelLM(lm.model, tokenizer, batch_tokens)
    scores = batched.loglikelihood(ask(*PAIRS))
    for pair, (total, greedy) in zip(PAIRS, scores, strict=True):
        expected, expected_greedy = oracle(lm, *pair)
        assert total == pytest.approx(expected, abs=1e-9), pair
        assert greedy == expected_greedy, pair
    assert batched.truncated > 0


def test_a_context_shared_by_choices_runs_once(tokenizer, lm, monkeypatch):
    seen = []
    hidden = lm.model.hidden
    monkeypatch.setattr(lm.model, "hidden", lambda tokens, cache=None: seen.append(tokens.numel()) or hidden(tokens, cache))
    pairs = [(CONTEXTS[3], choice) for choice in (" mat and the", " log and the", " dog and the", " cat and the")]
    ModelLM(lm.model, tokenizer).loglikelihood(ask(*pairs))
    assert sum(seen) < 0.7 * sum(len(tokenizer.encode(context + choice).ids) for context, choice in pairs)


@pytest.mark.parametrize("arch", SPARSE, ids=lambda arch: arch.name)
def test_shared_contexts_and_padding_leave_sparse_layers_alone(tokenizer, arch):
    model = build(tokenizer, arch=arch).float()
    for name, parameter in model.named_parameters():
        if name.endswith("conv.weight_kD"):
            torch.nn.init.normal_(parameter)
    model.refresh()
    sparse = ModelLM(model, tokenizer)
    scores = sparse.loglikelihood(ask(*PAIRS))
    for pair, (total, _) in zip(PAIRS, scores, strict=True):
        assert total == pytest.approx(oracle(sparse, *pair)[0], abs=2e-3), pair


def test_is_greedy_for_what_greedy_decoding_gives(lm, tokenizer):
    context = "The dog"
    tokens = tokenizer.encode(context).ids
    for _ in range(6):
        tokens.append(int(lm.model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    pair = (tokens[: len(tokens) - 6], tokens[len(tokens) - 6 :])
    wrong = [(pair[0], [*pair[1][:-1], pair[1][-1] + step]) for step in (1, -1)]
    (total, greedy), *others = lm.score([list(lm.windows(*asked)) for asked in (pair, *wrong)])
    assert greedy
    assert not any(other_greedy for _, other_greedy in others)
    assert all(total > other for other, _ in others)


def test_a_uniform_model_scores_ln_v_per_token(uniform, tokenizer):
    ln_v = math.log(tokenizer.get_vocab_size())
    (pair, long), n = uniform.loglikelihood(ask(("The cat", " sat on the mat"), ("The cat", 9 * TEXT))), 0
    n = len(tokenizer.encode("The cat sat on the mat").ids) - len(tokenizer.encode("The cat").ids)
    assert pair[0] == pytest.approx(-n * ln_v)
    n = len(tokenizer.encode("The cat" + 9 * TEXT).ids) - len(tokenizer.encode("The cat").ids)
    assert n > 5 * SEQ_LEN
    assert long[0] == pytest.approx(-n * ln_v)
    for text in (TEXT, 5 * TEXT, "The", ""):
        rolled = uniform.loglikelihood_rolling(ask((text,)))[0]
        assert rolled == pytest.approx(-len(tokenizer.encode(text).ids) * ln_v)


def test_rolling_predicts_a_short_text_from_its_beginning(lm):
    text = "The cat sat on the log."
    assert lm.loglikelihood_rolling(ask((text,)))[0] == pytest.approx(oracle(lm, "", text)[0], abs=1e-9)


def test_boundary_between_context_and_continuation(lm, tokenizer):
    assert lm.encode_pair("The cat ", "sat") == lm.encode_pair("The cat", " sat")
    for context, continuation in PAIRS:
        before, after = lm.encode_pair(context, continuation)
        assert after
        assert tokenizer.decode([token for token in before if token] + after) == context + continuation
    assert lm.encode_pair("", "dog") == ([0], tokenizer.encode("dog").ids)
    joined = tokenizer.encode(" animal").ids
    assert len(joined) == 1  # one token across the boundary: the continuation still has tokens of its own
    assert lm.encode_pair("The an", "imal")[1] != []
    alone = lm.encode_pair(" anima", "l")
    assert tokenizer.decode(alone[0] + alone[1]) == " animal"
    assert alone[1] == tokenizer.encode("l").ids


def greedy_text(lm, context, n):
    tokens, new = lm.tokenizer.encode(context).ids[-(SEQ_LEN - n) :], []
    for _ in range(n):
        new.append(int(lm.model.logits(torch.tensor([tokens + new]))[0, -1].argmax()))
        if new[-1] == 0:
            break
    return lm.tokenizer.decode(new)


def test_generation_is_greedy_and_stops(lm, monkeypatch):
    contexts = ["The cat", "Where is the dog? The dog", CONTEXTS[3], CONTEXTS[4], "A"]
    free = lm.generate_until(ask(*[(context, {"until": [], "max_gen_toks": 12}) for context in contexts]))
    assert free == [greedy_text(lm, context, 12) for context in contexts]
    stop = free[0][4:7]
    calls, hidden = [], lm.model.hidden
    monkeypatch.setattr(lm.model, "hidden", lambda tokens, cache=None: calls.append(1) or hidden(tokens, cache))
    cut = lm.generate_until(ask(("The cat", {"until": ["never", stop], "max_gen_toks": 12})))[0]
    assert len(calls) < 12
    assert cut == free[0][: free[0].index(stop)]
    with pytest.raises(UserError, match="do_sample: false"):
        lm.generate_until(ask(("A", {"do_sample": True, "temperature": 0.7})))
