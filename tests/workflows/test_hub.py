"""Corpora that are streamed: from the hub, of which a function stands in, or from local files in its place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_wheels import leftovers, texts, words

from evals.records import sources, strict
from evals.records.errors import UserError
from evals.records.shards import load_shards
from evals.scores.memory.mixture import MixtureConfig
from workflows import prepare
from workflows.prepare import DataConfig
from workflows.presets import load_preset


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


def test_without_the_hub_there_is_one_sentence_and_exit_2(index, folders, monkeypatch, refusal_of):
    """The real client, cut off from the network."""
    monkeypatch.delenv("ULTRAMEM_DATASETS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    out, cache = folders
    told = refusal_of(prepare.main, "--corpus", "c4", "--limit-bytes", "200000", "--out", out, "--cache", cache)
    (said,) = (line for line in told.splitlines() if not line.startswith("prepare: "))
    assert said.startswith("error: corpus 'c4' streams allenai/c4 from the hub, which could not be read (")
    assert said.endswith("connect this machine to the internet or use corpus 'pypi'")
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
