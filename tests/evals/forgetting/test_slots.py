"""Rows that the new facts read and other text does not are found, and nothing else of a model learns."""

import pytest
import torch
from forgetting_models import MEMORIES, build, documents

from evals.forgetting import slots
from evals.forgetting.people import IGNORED
from evals.forgetting.settings import Way
from evals.forgetting.ways import pupil


def test_the_score_prefers_what_the_new_facts_read_and_the_background_does_not():
    new = [torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 3])]
    background = [torch.tensor([0, 1, 1]), torch.tensor([0]), torch.tensor([0, 4, 4])]
    score = slots.tf_idf(new, background, 6)
    share = torch.tensor([5, 2, 1, 1, 0, 0], dtype=torch.float64) / 9
    idf = (4 / (1 + torch.tensor([3, 1, 0, 0, 1, 0], dtype=torch.float64))).log()
    torch.testing.assert_close(score, share * idf)
    assert score.argmax() == 1
    assert score[0] == 0  # read most often, but by every window


@pytest.mark.parametrize("arch", MEMORIES)
def test_reads_are_those_of_each_document_alone(arch):
    """Padding reads rows too, which count for nobody."""
    model, batch = build(MEMORIES[arch]), documents(lengths=(9, 4))
    together = slots.documents_reads(model, [batch])
    for name, of_documents in together.items():
        for row, rows_X in enumerate(of_documents):
            length = int((batch[1][row] != IGNORED).sum())
            alone = slots.documents_reads(model, [(batch[0][row : row + 1, :length], batch[1][row : row + 1, :length])])
            assert rows_X.tolist() == alone[name][0].tolist()
            assert len(rows_X)


@pytest.mark.parametrize("arch", MEMORIES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_but_the_values_of_chosen_rows_moves(arch, optimizer):
    model, batch = build(MEMORIES[arch]), documents(lengths=(9, 12), seed=1)
    rows = slots.chosen(model, [batch], [documents(lengths=(12,), seed=2)], 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = pupil(model, Way(name="slots", start=1e-2, optimizer=optimizer), 1e-2, 4, rows, 0)
    for _ in range(4):
        learner.step(batch)
    after = learner.model.state_dict()
    values = {f"{name}.values_NC": chosen for name, chosen in rows.items()}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in values)
    for name, chosen in values.items():
        moved = (before[name] != after[name]).any(1).nonzero()[:, 0]
        assert len(moved)
        assert set(moved.tolist()) <= set(chosen.tolist())
    assert learner.trained == sum(len(chosen) * before[name].shape[1] for name, chosen in values.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_rows_that_the_new_facts_do_not_read_are_not_chosen():
    model = build(MEMORIES["ultramem"])
    batch = documents(lengths=(2,))
    read = slots.documents_reads(model, [batch])
    rows = slots.chosen(model, [batch], [documents(lengths=(12,), seed=2)], 10**6)
    for name, chosen in rows.items():
        assert 0 < len(chosen) <= len(read[name][0].unique())
        assert set(chosen.tolist()) <= set(read[name][0].tolist())
