"""Ways are compared where they know as much; what is measured is paired; and a tiny model goes through the whole of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forgetting_models import ARCHS, BIOS, build, shards, tokenizer
from synthetic_forgetting import forgetting

from evals.forgetting import measure
from evals.forgetting.people import Reader, acquaintances, newcomers
from evals.forgetting.settings import STEP, TRIALS, WAYS, Settings
from evals.forgetting.teach import Exam, Point, at_level, revised, taught, windows
from evals.forgetting.ways import pupil
from evals.load import Opened
from evals.records import schema
from evals.records.errors import UserError
from evals.scores.lm import ModelLM

TINY = Settings(passes=2, every=1, people=3, batch=3, background=4, slots=5, rank=2, text_tokens=96, old_passes=2)


def curve(*known):
    return [Point(i, 10 * i, share, 1 - share, 2 * share, np.full(3, share)) for i, share in enumerate(known)]


def test_ways_are_compared_between_the_points_around_the_level():
    found = at_level(curve(0.1, 0.3, 0.7, 0.6, 0.9), 0.5)
    assert (found.passes, found.tokens, found.known) == pytest.approx((1.5, 15, 0.5))
    assert (found.old_known, found.old_loss) == pytest.approx((0.5, 1.0))
    assert found.text_W == pytest.approx([0.5] * 3)
    assert at_level(curve(0.1, 0.8, 0.2, 0.8), 0.7).passes == pytest.approx(6 / 7)  # the first time
    assert at_level(curve(0.1, 0.5), 0.5).passes == 1
    assert at_level(curve(0.6, 0.7), 0.5).passes == 0
    assert at_level(curve(0.1, 0.3), 0.5) is None


@pytest.mark.parametrize(
    ("optimum", "found", "edge"),
    [(0.0, 0.0, False), (-0.4, -0.5, False), (1.4, 1.5, False), (-2.2, -2.0, False), (9.0, 3.0, True), (-9.0, -3.0, True)],
)
def test_the_search_goes_on_to_the_better_side_and_takes_as_many_trials_everywhere(optimum, found, edge):
    asked = []

    def trial(rate):
        power = math.log(rate / 0.01, STEP)
        asked.append(power)
        return {"reached": True, "text_change": abs(power - optimum), "known": 0.7, "lr": rate}

    trials, winner, on_edge = measure.search(trial, 0.01)
    assert len(asked) == len(trials) == TRIALS
    assert [row["lr"] for row in trials] == sorted(row["lr"] for row in trials)
    assert math.log(winner["lr"] / 0.01, STEP) == pytest.approx(found)
    assert on_edge is edge


def test_a_rate_that_does_not_get_there_never_wins_over_one_that_does():
    def trial(rate):
        return {"reached": rate > 0.05, "text_change": rate, "known": rate, "lr": rate}

    _, winner, _ = measure.search(trial, 0.01)
    assert 0.05 < winner["lr"] < 0.1
    _, winner, edge = measure.search(lambda rate: trial(rate) | {"reached": False}, 1e-4)
    assert winner["lr"] == pytest.approx(27e-4)  # knows most
    assert edge


@pytest.fixture(scope="module")
def made():
    return tokenizer()


def school(made, arch="dense", settings=TINY):
    model, corpus = build(ARCHS[arch], made.get_vocab_size()), shards(made)
    lm = ModelLM(model, made)
    new, old = newcomers(BIOS, settings.people, 0), acquaintances(BIOS, settings.people)
    return model, Exam(lm, corpus, new, old, "test", settings), Reader(made, 40)


def test_a_change_is_paired_by_window_and_weighs_sources_as_training_does(made):
    model, exam, _ = school(made)
    before = exam.sit(model)
    assert len(before.text_W) == 4  # two windows of each headline source
    noise = np.array([3.0, -5.0, 1.0, 7.0])  # is in both, so that it does not show
    one, other = (
        Point(0, 0, 0, 0, 0, before.text_W + noise + np.array(change)) for change in ([0, 0, 0, 0], [0.1, 0.3, 1.0, 1.0])
    )
    change, error = exam.change(one, other)
    assert change == pytest.approx(0.75 * 0.2 + 0.25 * 1.0)
    assert 0 < error < 0.5
    assert exam.change(one, one) == (0, 0)


def test_everybody_sits_the_same_exam_whoever_sat_before(made):
    model, exam, _ = school(made)
    before, other = exam.sit(model), exam.sit(build(ARCHS["dense"], made.get_vocab_size(), seed=1))
    again = exam.sit(model)
    assert np.array_equal(before.text_W, again.text_W)
    assert (before.old_known, before.old_loss) == (again.old_known, again.old_loss)
    assert not np.array_equal(before.text_W, other.text_W)


def test_a_model_learns_what_it_reads_and_stops_when_it_knows(made):
    settings = Settings(passes=60, every=3, people=3, batch=3, text_tokens=48, level=0.6, stop=0.6)
    model, exam, reader = school(made, settings=settings)
    learner = pupil(model, WAYS[0], 1e-2, 4, {}, 0)
    found = taught(learner, exam.sit(model), exam, reader, settings, 0.6, 0)
    assert found[0].passes == 0
    assert found[-1].known >= 0.6 > max(point.known for point in found[:-1])
    assert [point.passes for point in found[1:]] == list(range(3, 3 * len(found), 3))
    assert found[-1].tokens > found[1].tokens > 0


def test_a_model_that_knows_enough_is_left_alone_and_another_reads_on(made):
    model, exam, reader = school(made)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read = shards(made).train
    settings = Settings(old_level=1e-9, people=3, old_passes=4, every=2, batch=2)
    exam.old.gold[:] = [int(np.argmax(part)) for part in parts(exam)]  # by its own lights it knows them all
    revised(model, exam.people, exam, reader, read, settings, 1e-2, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    exam.old.gold[:] = [int(np.argmin(part)) for part in parts(exam)]
    revised(model, exam.people, exam, reader, read, settings, 1e-2, 0)
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def parts(exam):
    logprobs = [total for total, _ in exam.lm.loglikelihood(exam.old.requests)]
    return np.split(np.array(logprobs), np.cumsum(exam.old.choices)[:-1])


def test_windows_of_training_text_are_drawn_by_a_seed(made):
    train = shards(made).train
    one, again, other = (next(windows(train, 8, 3, seed)) for seed in (0, 0, 1))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[0][:, 1:], one[1][:, :-1])
    with pytest.raises(UserError, match="has 8 tokens, a window 9"):
        next(windows(train[:8], 8, 3, 0))


def opened(folder, made, arch, bios=BIOS):
    return Opened(folder.name, build(ARCHS[arch], made.get_vocab_size()), made, shards(made), folder, folder, bios)


@pytest.fixture
def finished(made, monkeypatch):
    """Runs that are opened from memory: `finished(arch)` gives their folders."""

    def config(folder):
        arch, _, seed = folder.name.split("-")
        train = SimpleNamespace(lr=1e-2)
        return SimpleNamespace(run=folder.name, arch=arch, size="xs", seed=int(seed[1:]), train=train)

    monkeypatch.setattr(measure, "load_run", config)
    monkeypatch.setattr(measure, "open_run", lambda folder, device: opened(folder, made, folder.name.split("-")[0]))


@pytest.mark.parametrize(("arch", "ways"), [("dense", ["full", "lora"]), ("ultramem_v2", ["full", "lora", "slots"])])
def test_runs_become_rows(finished, arch, ways, tmp_path):
    folders = [tmp_path / f"{arch}-xs-s{seed}" for seed in (0, 1)]
    found = list(measure.rows(folders, TINY))
    schema.write(tmp_path / "forgetting.csv", "forgetting", found)
    frame = schema.read(tmp_path / "forgetting.csv", "forgetting")
    tried = frame[frame.kind == "tuning"]
    assert tried.groupby("way").size().to_dict() == dict.fromkeys(ways, TRIALS)
    assert tried[tried.chosen.fillna(False).astype(bool)].way.tolist() == ways
    assert set(tried.run) == {folders[0].name}
    chosen = tried[tried.chosen.fillna(False).astype(bool)].set_index("way").lr
    taught = frame[frame.kind != "tuning"]
    assert (taught.lr == taught.way.map(chosen)).all()
    assert frame[frame.kind == "level"].groupby(["run", "way"]).size().tolist() == [1] * 2 * len(ways)
    before = frame[(frame.kind == "curve") & (frame.passes == 0)]
    assert (before.text_change == 0).all()
    assert before.groupby("run").text_loss.nunique().tolist() == [1, 1]  # all ways start from one model
    assert before.groupby("run").old_known.nunique().tolist() == [1, 1]


def test_a_corpus_without_people_is_one_sentence(finished, made, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "open_run", lambda folder, device: opened(folder, made, "dense", None))
    with pytest.raises(UserError, match="holds no biographies to forget"):
        next(measure.rows([tmp_path / "dense-xs-s0"], TINY))


def test_tables_of_several_architectures_are_joined(tmp_path):
    parts = [tmp_path / f"{arch}.csv" for arch in ("dense", "ultramem")]
    for part in parts:
        schema.write(part, "forgetting", forgetting((part.stem,)))
    measure.main(["--join", *map(str, parts), "--out", str(tmp_path / "all.csv")])
    assert list(schema.read(tmp_path / "all.csv", "forgetting").arch.unique()) == ["dense", "ultramem"]
