"""Which training documents share a run of `ngram` words with an evaluation item.

Words are the lower-cased runs of letters, digits and underscores, so punctuation does not hide a copy. A run is held as
one 64-bit hash, so a false alarm has odds of about 1e-6 for a whole corpus and a shared run is never missed. An item or
a document of fewer words than `ngram` cannot match.

Letters: W words of several texts, each text followed by a gap; G n-grams of the evaluation sets, sorted.
"""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from workflows.corpus import item_texts

GAP = -1  # end of a text, or a word that no evaluation item holds: no n-gram crosses it
WORD = re.compile(r"\w+")
SIEVE_BITS = 26  # 64 MB that spare most look-ups their binary search


class Contamination:
    """Index of the evaluation items. `items[set]` counts them; `grams` are their hashes."""

    def __init__(self, items: Iterable[tuple[str, dict]], ngram: int):
        self.ngram, self.items = ngram, Counter()
        self._vocabulary: dict[str, int] = {}
        ids: dict[str, list[int]] = {}
        for name, item in items:
            self.items[name] += 1
            known = ids.setdefault(name, [])
            for text in item_texts(item, ngram):
                known += [self._vocabulary.setdefault(w, len(self._vocabulary)) for w in WORD.findall(text.lower())]
                known.append(GAP)
        self._names = list(ids)
        rng = np.random.default_rng(0)
        self._word_hash = rng.integers(0, 2**64, len(self._vocabulary) + 1, dtype=np.uint64)
        self._place_hash = rng.integers(0, 2**63, ngram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

        hash_all, bit_all = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        for bit, name in enumerate(self._names):
            fresh = np.unique(self._hashes(np.array(ids[name], dtype=np.int64))[0])
            hash_all = np.concatenate([hash_all, fresh])
            bit_all = np.concatenate([bit_all, np.full(len(fresh), 1 << bit, np.uint64)])
        order = np.argsort(hash_all, kind="stable")
        self.grams, first = np.unique(hash_all[order], return_index=True)
        self._sets_G = np.bitwise_or.reduceat(bit_all[order], first) if len(first) else bit_all
        self._shift = np.uint64(64 - SIEVE_BITS)
        self._sieve = np.zeros(2**SIEVE_BITS, dtype=bool)
        self._sieve[self.grams >> self._shift] = True

    def check(self, texts: list[str]) -> dict[int, list[str]]:
        """{index of a text: evaluation sets it shares an n-gram with}, for the texts that share any."""
        known: list[int] = []
        lengths = []
        for text in texts:
            words = [self._vocabulary.get(word, GAP) for word in WORD.findall(text.lower())]
            known += words
            known.append(GAP)
            lengths.append(len(words) + 1)
        hashes, start = self._hashes(np.array(known, dtype=np.int64))
        likely = self._sieve[hashes >> self._shift]
        hashes, start = hashes[likely], start[likely]
        rank = np.minimum(np.searchsorted(self.grams, hashes), len(self.grams) - 1)
        same = self.grams[rank] == hashes
        text_of = np.repeat(np.arange(len(texts)), lengths)[start[same]]
        sets = np.zeros(len(texts), dtype=np.uint64)
        np.bitwise_or.at(sets, text_of, self._sets_G[rank[same]])
        return {
            int(index): [name for bit, name in enumerate(self._names) if int(sets[index]) >> bit & 1]
            for index in np.flatnonzero(sets)
        }

    def _hashes(self, ids_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hash and first word of every n-gram that holds no gap."""
        n_starts = len(ids_W) - self.ngram + 1
        if n_starts <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        gaps_W = np.concatenate([[0], np.cumsum(ids_W == GAP)])
        start = np.flatnonzero(gaps_W[self.ngram :] == gaps_W[:n_starts])
        total = np.zeros(len(start), dtype=np.uint64)
        for place in range(self.ngram):
            total += self._word_hash[ids_W[start + place]] * self._place_hash[place]
        return total, start
