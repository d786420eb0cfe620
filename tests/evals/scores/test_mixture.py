"""People of the biographies, and the training mix that is the same for every architecture."""

import re
from collections import Counter

import pytest

from evals.records.errors import UserError
from evals.scores.memory.bios import ATTRIBUTES, VALUES, BioS
from evals.scores.memory.episodes import TASKS
from evals.scores.memory.items import items_of
from evals.scores.memory.mixture import MixtureConfig, mixture
from workflows.prepare import train_bpe


def test_biographies_state_what_is_asked():
    bios = BioS(n_people=30, exposures=4)
    documents = [" ".join(sentences) for sentences in bios.biographies(0)]
    assert len(documents) == 120
    for attribute in ATTRIBUTES:
        for item in items_of(bios, 0, 30, attribute):
            statement = f"{item.context} {item.choices[item.gold]}."
            _, forms = ATTRIBUTES[attribute]
            stated = [document for document in documents if any(is_form(form, statement, document) for form in forms)]
            assert len(stated) == 4, statement
            assert len(set(item.choices)) == 10 == 1 / item.chance
            assert all(any(f"{choice}." in document for document in documents) for choice in item.choices)
            assert item.n_values == ATTRIBUTES[attribute][0]


def is_form(form, statement, document):
    """Whether the document says of the person of `statement`, in `form`, the value of `statement`."""
    form = re.escape(form).replace(re.escape("{name}"), "(?P<name>[A-Z]\\w+ [A-Z]\\w+ [A-Z]\\w+)")
    said = re.search(form + r" (?P<value>[^.]*)\.", document)
    return said is not None and said["name"] in statement and statement.endswith(f" {said['value']}.")


def test_people_differ_and_keep_their_attributes():
    bios = BioS()
    assert len({bios.person(i)[0] for i in range(30_000)}) == 30_000
    assert bios.person(7) == BioS(n_people=9, exposures=1).person(7)
    assert bios.person(7)[1] != bios.person(8)[1]


def test_what_a_person_is_drawn_from():
    """12 * 28 * 200 dates, 200 cities, 300 universities, 100 majors, 263 employers."""
    assert [len(VALUES[name]) for name in VALUES] == [200, 300, 100, 263]
    assert all(len(set(values)) == len(values) for values in VALUES.values())


@pytest.fixture(scope="module")
def tokenizer():
    episodes = (episode for task in TASKS.values() for episode in task.train_episodes(9, 12))
    return train_bpe((episode.document() for episode in episodes), 512)


CFG = MixtureConfig(n_tokens=60_000, n_people=8, exposures=6)


def test_the_mixture_is_a_function_of_its_seed(tokenizer):
    documents = mixture(CFG, tokenizer, 1, 256)
    assert documents == mixture(CFG, tokenizer, 1, 256)
    assert documents != mixture(CFG, tokenizer, 2, 256)


def test_the_mixture_holds_every_exposure_and_equal_shares(tokenizer):
    documents = mixture(CFG, tokenizer, 1, 256)
    assert {task for task, _ in documents} == {*TASKS, "bios"}
    for i in range(CFG.n_people):
        name, values = CFG.bios.person(i)
        assert sum(name in text and values["employer"] in text for _, text in documents) == CFG.exposures
    share = Counter()
    for task, text in documents:
        share[task] += len(tokenizer.encode(text).ids) + 1
    assert 0.97 * CFG.n_tokens < share.total() <= CFG.n_tokens
    assert all(share[task] == pytest.approx(share["phone_book"], rel=0.1) for task in TASKS)


def test_shuffled_documents(tokenizer):
    """A stretch of the stream holds many tasks, not one."""
    assert {task for task, _ in mixture(CFG, tokenizer, 1, 256)[:200]} == {*TASKS, "bios"}


def test_long_documents_are_made_to_fit(tokenizer):
    """Biographies in several documents, other tasks with fewer questions; nothing that people are asked about is lost."""
    long, short = (mixture(CFG, tokenizer, 1, longest) for longest in (1000, 100))
    lengths = [[len(tokenizer.encode(text).ids) + 1 for _, text in documents] for documents in (long, short)]
    assert max(lengths[0]) > 128 > 100 >= max(lengths[1])
    said = [
        Counter(line for task, text in documents if task == "bios" for line in text.rstrip(".\n").split(". "))
        for documents in (long, short)
    ]
    assert said[0] == said[1]
    assert {task for task, _ in short} == {task for task, _ in long}
    with pytest.raises(UserError, match="a sentence of a biography is longer than align 16 tokens: raise align"):
        mixture(CFG, tokenizer, 1, 16)


def test_biographies_must_fit(tokenizer):
    with pytest.raises(UserError, match=r"n_people 500 x exposures 6 take \d+ tokens, more than n_tokens 60000"):
        mixture(MixtureConfig(n_tokens=60_000, n_people=500, exposures=6), tokenizer, 0, 256)
