"""Closed-book questions about the training corpus itself: title -> description, word -> definition, four options.

The right option is the corpus's own sentence in its own form, so a model that has read the document has seen the answer
word for word. The three others belong to subjects of the same topic or part of speech; chance is 25 %. `unseen` levels
ask the same of documents held out of training: what they score is skill at guessing, not memory.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from evals.records.errors import UserError
from evals.records.shards import load_shards

FORMS = {"wiki_lead": ("{subject}:", " {answer}"), "gcide": ("{subject}, {group}", "\n{answer}")}
MAX_CHARS = 80  # longer definitions tell more about the length of the context than about memory
OPTIONS = 4


def items(corpus: Path, n: int) -> list[dict]:
    """n items, equally many of each source and split; always the same ones.

    Raises:
        UserError: the corpus has no source with facts.
    """
    shards = load_shards(corpus)
    facts = [("", fact) for fact in shards.facts("train")]
    facts += [(" unseen", fact) for split in ("validation", "test") for fact in shards.facts(split)]
    facts = [(seen, fact) for seen, fact in facts if fact["source"] in FORMS and len(fact["answer"]) <= MAX_CHARS]
    levels, groups = defaultdict(list), defaultdict(set)
    for seen, fact in facts:
        levels[fact["source"] + seen].append(fact)
        groups[fact["source"], fact["group"]].add(fact["answer"])
    if not levels:
        raise UserError(f"{corpus} has no facts to ask for: its sources are {', '.join(shards.meta['sources'])}")
    pools = {group: sorted(answers) for group, answers in groups.items() if len(answers) >= 10 * OPTIONS}
    found = []
    for level in sorted(levels):
        usable = [fact for fact in levels[level] if (fact["source"], fact["group"]) in pools]
        rng = random.Random(level)
        for fact in rng.sample(usable, min(n // len(levels), len(usable))):
            found.append(_item(fact, level, pools[fact["source"], fact["group"]], rng))
    return found


def _item(fact: dict, level: str, pool: list[str], rng: random.Random) -> dict:
    context, option = FORMS[fact["source"]]
    answers = [answer for answer in rng.sample(pool, OPTIONS) if answer != fact["answer"]][: OPTIONS - 1]
    answers.insert(gold := rng.randrange(OPTIONS), fact["answer"])
    return {
        "context": context.format(**fact),
        "choices": [option.format(answer=answer) for answer in answers],
        "gold": gold,
        "level": level,
    }
