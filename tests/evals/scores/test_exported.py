"""lm-eval's own `hf` model on an exported run against our adapter on the run: the same scores of all that smoke scores."""

import numpy as np
import pytest
from exported_runs import finished, prepared
from lm_eval.models.huggingface import HFLM
from made_up_sets import corpus
from memory_layers import MODELS, model_of
from scored_models import CONTEXTS, TEXT, ask

from evals.scores import perplexity
from evals.scores.harness import questions, scores
from evals.scores.lm import ModelLM
from evals.scores.memory.bios import BioS
from models.export import export
from workflows.presets import load_preset


class Theirs(ModelLM):
    """Answers with lm-eval's `hf` model; ours is left to count tokens."""

    hf: HFLM

    def loglikelihood(self, requests):
        return self.hf.loglikelihood(requests, disable_tqdm=True)

    def score(self, requests):
        asked = [(("", ""), inputs[: len(inputs) + 1 - len(targets)], targets) for ((inputs, targets),) in requests]
        return self.hf._loglikelihood_tokens(asked, disable_tqdm=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our adapter on a run and lm-eval's on its export, and the run's data."""
    work = tmp_path_factory.mktemp("scored")
    tokenizer = prepared(work / "data")
    corpus(work / "data", tokenizer)
    model = finished(work / "run", work / "data", model_of(MODELS["v2"], vocab_size=tokenizer.get_vocab_size(), seq_len=128))
    export(work / "run", work / "out")
    ours, theirs = ModelLM(model, tokenizer), Theirs(model, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(work / "modules"))
        theirs.hf = HFLM(pretrained=str(work / "out"), trust_remote_code=True, device="cpu", batch_size=16, dtype="float32")
    return ours, theirs, work / "data"


def test_every_task_of_smoke_has_the_same_scores(pair, wheel):
    ours, theirs, data = pair
    smoke, bios = load_preset("smoke").measure.evals, BioS(n_people=12, exposures=1)
    tasks = [suite for suite in smoke.suites if suite != "perplexity"]
    asked = questions(ours, tasks, wheel, data, bios, smoke.limit)
    rows, found = (scores(lm, asked, bios) for lm in (ours, theirs))
    assert len({row["task"].partition("/")[0] for row in rows}) >= 30
    assert len({row["value"] for row in rows}) > 50
    for row, same in zip(rows, found, strict=True):
        for name, value in row.items():
            expected = pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value
            assert same[name] == expected, (row["task"], row["metric"], name)


def test_perplexity_is_the_same(pair):
    ours, theirs, _ = pair
    ids = np.array(ours.encode(9 * TEXT))
    losses, found = (perplexity.window_losses(lm, ids, None, "text") for lm in (ours, theirs))
    assert len(losses) > 2
    assert found == pytest.approx(losses, rel=1e-5)
    assert theirs.hf.loglikelihood_rolling(ask((9 * TEXT,)), disable_tqdm=True) == pytest.approx(
        ours.loglikelihood_rolling(ask((9 * TEXT,))), rel=1e-5
    )


def test_generation_in_padded_batches_is_the_same(pair):
    ours, theirs, _ = pair
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = ask(*[(context, options) for context in CONTEXTS])
    assert len({len(ours.encode(context)) for context in CONTEXTS}) > 3
    assert theirs.hf.generate_until(requests, disable_tqdm=True) == ours.generate_until(requests)
