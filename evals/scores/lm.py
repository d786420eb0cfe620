"""`ModelLM`, the adapter between lm-eval 0.4.13 and a Transformer.

B rows, T time, S scored positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from evals.records.errors import UserError
from evals.records.shards import end_of_text

BLOCK = 16


class Row(NamedTuple):
    """One input of the model and what is wanted of it: (length of a beginning, its last targets, their request)."""

    inputs: tuple[int, ...]
    wanted: list[tuple[int, list[int], int]]

    @property
    def unscored(self) -> int:
        """Positions before the first whose prediction is scored."""
        return min(length - len(targets) for length, targets, _ in self.wanted)


class ModelLM(LM):
    """A Transformer and its tokenizer as an lm-eval model, scored in float32 whatever the weights are.

    Prompts longer than the model's `seq_len` lose their left end; a continuation is always scored wholly.

    Args:
        model: has `hidden(tokens_BT, cache) -> (hidden_BTD, aux)`, `decode_state`, `head_weight` (V, D) and `cfg`, as a
            Transformer.
        tokenizer: a `tokenizers.Tokenizer` with `<|endoftext|>`, the prefix of an empty context.
        batch_tokens: padded tokens in one forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int = 4096, device: str = "cpu"):
        super().__init__()
        self._device = torch.device(device)
        self.model, self.tokenizer, self.batch_tokens = model.to(self.device).eval(), tokenizer, batch_tokens
        self.seq_len, self.prefix = model.cfg.seq_len, end_of_text(tokenizer)
        self.truncated = 0
        self.encode = cache(self._encode)  # a context stands before each of its choices, and is asked of many models

    @property
    def tokenizer_name(self) -> str:
        return "suite-bpe"

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the context and of the continuation as they stand in the joined text.

        White space at the end of the context moves to the continuation, where the tokenizer would join it. Where the
        joined text has no token of the continuation's own, both are encoded apart.
        """
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if not context:
            return [self.prefix], self.encode(continuation)
        alone, whole = self.encode(context), self.encode(context + continuation)
        if len(whole) > len(alone):
            return whole[: len(alone)], whole[len(alone) :]
        return alone, self.encode(continuation)

    def fits(self, context: str, choices: list[str]) -> bool:
        """Whether the longest choice can be scored with the whole context before it."""
        return len(self.encode(f"{context} {max(choices, key=len)}")) <= self.seq_len + 1

    def windows(self, context: list[int], continuation: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """(input, targets) pairs, the targets being those of the input's last positions."""
        if len(continuation) > self.seq_len:
            yield from get_rolling_token_windows(continuation, context[-1], self.seq_len, context_len=1)
        else:
            yield (context + continuation)[-self.seq_len - 1 : -1], continuation

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        pairs = [self.encode_pair(*request.args) for request in requests]
        self.truncated += sum(len(context) + len(continuation) > self.seq_len + 1 for context, continuation in pairs)
        return self.score([list(self.windows(*pair)) if pair[1] else [] for pair in pairs])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts, in windows of seq_len tokens, as lm-eval's own models do."""
        texts = [self.encode(request.args[0]) for request in requests]
        rolls = [list(get_rolling_token_windows(text, self.prefix, self.seq_len, context_len=1)) for text in texts]
        return [total for total, _ in self.score(rolls)]

    @torch.no_grad()
    def score(self, requests: list[list[tuple[list[int], list[int]]]]) -> list[tuple[float, bool]]:
        """Summed log-probability and greediness of each request's windows.

        Inputs that begin another input, such as a context before choices of one token each, ride along with it.
        """
        jobs = sorted(
            (tuple(inputs), targets, number) for number, windows in enumerate(requests) for inputs, targets in windows
        )
        rows: list[Row] = []
        for inputs, targets, number in reversed(jobs):
            if not rows or rows[-1].inputs[: len(inputs)] != inputs:
                rows.append(Row(inputs, []))
            rows[-1].wanted.append((len(inputs), targets, number))
        totals, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
        for shared, batch in self._batches(rows):
            row_S: list[int] = []
            column_S: list[int] = []
            target_S: list[int] = []
            number_S: list[int] = []
            for row, (_, wanted) in enumerate(batch):
                for length, targets, number in wanted:
                    row_S += [row] * len(targets)
                    column_S += range(length - len(targets) - shared, length - shared)
                    target_S += targets
                    number_S += [number] * len(targets)
            hidden_SD = self._hidden([row.inputs for row in batch], shared)[row_S, column_S]
            logprob_S, greedy_S = self._picked(hidden_SD, torch.tensor(target_S, device=self.device))
            np.add.at(totals, number_S, logprob_S.double().cpu().numpy())
            np.logical_and.at(greedy, number_S, greedy_S.cpu().numpy())
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _batches(self, rows: list[Row]) -> Iterator[tuple[int, list[Row]]]:
        """Rows in groups that pad to at most batch_tokens, and how many first tokens they share with a sibling.

        The choices of one item share their context. It is cut to whole blocks, so that contexts of nearly one length
        go through the model in one pass and their cache has no holes.
        """
        families = defaultdict(list)
        for row in rows:
            families[row.inputs[: row.unscored // BLOCK * BLOCK]].append(row)
        groups = defaultdict(list)
        for head, family in families.items():
            groups[len(head) if len(family) > 1 else 0].append(sorted(family, key=lambda row: -len(row.inputs)))
        for shared, of_one_length in groups.items():
            of_one_length.sort(key=lambda family: -len(family[0].inputs))
            group = [row for family in of_one_length for row in family]
            while group:
                size = max(1, self.batch_tokens // len(group[0].inputs))
                yield shared, group[:size]
                group = group[size:]

    def _hidden(self, inputs: list, shared: int = 0) -> Tensor:
        """(B, T, D) hidden states of the inputs from position `shared` on; the tokens before it run once for all."""
        if not shared:
            return self.model.hidden(self._padded(inputs))[0]
        heads = {head: number for number, head in enumerate(dict.fromkeys(tokens[:shared] for tokens in inputs))}
        cache = self.model.decode_state(len(heads), shared)
        self.model.hidden(self._padded(list(heads)), cache)
        rows = torch.tensor([heads[tokens[:shared]] for tokens in inputs], device=self.device)
        cache = cache.take(rows, max(map(len, inputs)))
        return self.model.hidden(self._padded([tokens[shared:] for tokens in inputs]), cache)[0]

    def _padded(self, rows: list) -> Tensor:
        """(B, T) tokens; padding on the right, which causal layers do not see from the left."""
        tokens_BT = torch.full((len(rows), max(map(len, rows))), self.prefix)
        for row, tokens in enumerate(rows):
            tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
        return tokens_BT.to(self.device)

    def _picked(self, hidden_SD: Tensor, target_S: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, greedy = [], []
        for hidden, target in zip(hidden_SD.split(2048), target_S.split(2048), strict=True):
            logits_SV = (hidden @ self.model.head_weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
            best_S = logits_SV.argmax(-1)
            picked_S = logits_SV.gather(1, target[:, None])[:, 0]
            logprobs.append(picked_S - logits_SV.logsumexp(-1))
            greedy.append(best_S == target)
        return torch.cat(logprobs), torch.cat(greedy)

    @torch.no_grad()
    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy decoding; the text before the first of `until`. The whole sequence is run again for each token.

        Raises:
            UserError: a task asks for sampling.
        """
        states: list[dict[str, Any]] = []
        for request in requests:
            context, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise UserError("a task asks for sampling and this suite decodes greedily: set do_sample: false in it")
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            room = min(options.get("max_gen_toks", 64), self.seq_len - 1)
            tokens = self.encode(context) or [self.prefix]
            states.append({"tokens": tokens[-(self.seq_len - room) :], "new": [], "until": until, "room": room})
        live = [state for state in states if state["room"] > 0]
        while live:
            live.sort(key=lambda state: -len(state["tokens"]))
            size = max(1, self.batch_tokens // len(live[0]["tokens"]))
            for batch in (live[start : start + size] for start in range(0, len(live), size)):
                inputs = [state["tokens"] for state in batch]
                last_BD = self._hidden(inputs)[range(len(batch)), [len(row) - 1 for row in inputs]]
                for state, token in zip(batch, (last_BD @ self.model.head_weight.T).argmax(-1).tolist(), strict=True):
                    state["tokens"].append(token)
                    state["new"].append(token)
            live = [state for state in live if not self._ended(state)]
        return [_before(self.tokenizer.decode(state["new"]), state["until"]) for state in states]

    def _ended(self, state: dict) -> bool:
        if state["new"][-1] == self.prefix or len(state["new"]) >= state["room"]:
            return True
        text = self.tokenizer.decode(state["new"])
        return any(stop in text for stop in state["until"])


def _before(text: str, until: list[str]) -> str:
    return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]
