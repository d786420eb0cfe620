"""New people are nobody's acquaintances, and what they are taught by and asked follows from the draw alone."""

import numpy as np
import pytest
from forgetting_models import BIOS, tokenizer

from evals.forgetting.people import IGNORED, Questions, Reader, acquaintances, newcomers
from evals.records.errors import UserError
from evals.scores.memory.bios import ATTRIBUTES, BioS


@pytest.fixture(scope="module")
def reader():
    return Reader(tokenizer(), 64)


def names(people):
    return {people.person(i)[0] for i in range(people.n_people)}


def test_no_draw_knows_anybody_of_the_corpus_or_of_another_draw():
    corpus = BioS(n_people=50)
    draws = [newcomers(corpus, 20, draw) for draw in range(4)]
    everybody = [names(corpus), *map(names, draws)]
    assert sum(map(len, everybody)) == len(set.union(*everybody)) == 50 + 4 * 20
    assert newcomers(corpus, 20, 1).person(3) == draws[1].person(3) == corpus.person(73)
    told = " ".join(" ".join(sentences) for sentences in corpus.biographies(0))
    assert not any(name in told for draw in draws for name in names(draw))


def test_old_people_are_those_of_the_corpus():
    assert names(acquaintances(BioS(n_people=50), 20)) <= names(BioS(n_people=50))
    with pytest.raises(UserError, match="biographies of 4 people, not of 5"):
        acquaintances(BIOS, 5)


def test_a_pass_tells_every_fact_of_everybody_once(reader):
    people = newcomers(BIOS, 3, 0)
    passes = [[reader.tokenizer.decode(document) for document in one] for one in reader.passes(people, 2, seed=5)]
    assert passes == [[reader.tokenizer.decode(document) for document in one] for one in reader.passes(people, 2, seed=5)]
    assert passes[0] != passes[1]
    for one in passes:
        told = " ".join(one)
        for i in range(3):
            name, values = people.person(i)
            assert told.count(name) == len(ATTRIBUTES)
            assert all(f" {value}." in told for value in values.values())


def test_documents_begin_with_an_end_of_text_and_fit(reader):
    short = Reader(reader.tokenizer, 24)
    sentences = BIOS.biographies(0)[0]
    whole, parts = (one.documents(sentences) for one in (Reader(reader.tokenizer, 500), short))
    assert len(whole) == 1 < len(parts)
    assert all(document[0] == reader.end and len(document) <= 24 for document in parts)
    assert reader.tokenizer.decode(whole[0]).split() == " ".join(map(reader.tokenizer.decode, parts)).split()
    with pytest.raises(UserError, match="longer than 4 tokens"):
        Reader(reader.tokenizer, 4).documents(sentences)


def test_targets_are_the_next_tokens_and_padding_has_none(reader):
    tokens, targets = reader.batch([[0, 5, 6, 7], [0, 8]])
    assert tokens.tolist() == [[0, 5, 6], [0, 0, 0]]
    assert targets.tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]


def test_every_fact_is_asked_and_a_mark_is_the_likeliest_choice():
    people = BioS(n_people=20)
    asked = Questions.about(people, 0)
    assert len(asked.gold) > 4 * 20
    assert len(asked.requests) == sum(asked.choices)
    truth = {value for i in range(20) for value in people.person(i)[1].values()}
    start = 0
    for n, gold in zip(asked.choices, asked.gold, strict=True):
        context, choice = asked.requests[start + gold].args
        (values,) = [values for name, values in map(people.person, range(20)) if name in context]
        assert choice.strip() in values.values()
        assert {request.args[1].strip() for request in asked.requests[start : start + n]} <= truth
        start += n


def test_marks_of_planted_answers():
    asked = Questions([None] * 5, [2, 3], [1, 0])
    known, nats = asked.marks(np.log([0.2, 0.6, 0.1, 0.1, 0.2]))
    assert known == 0.5
    assert nats == pytest.approx((-np.log(0.75) - np.log(0.25)) / 2)
