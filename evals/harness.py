"""Scores a trained run on lm-eval tasks: python -m evals.harness --run results/cpu/runs/dense-xs-s0 --limit 200

`ModelLM` is the adapter between lm-eval 0.4.13 and a Transformer; `evaluate` runs the tasks of evals/tasks, which read
everything from files that `workflows.prepare` fetched, and returns rows of the table `evals` (evals/schema.py).
`--online papers` adds lm-eval's own versions of the papers' tasks, as "TASK (lm-eval)", and needs the internet.

B rows, T time, S scored positions, D d_model, V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from evals import perplexity, schema
from evals.memory_tasks import TASKS as MEMORY_TASKS
from evals.memory_tasks import BioS, end_of_text
from workflows.errors import UserError, run

TASKS_DIR = Path(__file__).parent / "tasks"
MMLU_VAR = ("mmlu_var_stem", "mmlu_var_humanities", "mmlu_var_social_sciences", "mmlu_var_other")
SUITES = {
    "open": (
        *("arc_challenge", "arc_easy", "commonsense_qa", "hellaswag", *MMLU_VAR),
        *("openbook_qa", "piqa", "sciq", "winogrande", "social_iqa", "boolq", "copa"),
    ),
    "answers": ("lambada", "trivia_qa", "nq_open", "drop", "squad"),
    "memory": (*MEMORY_TASKS, "bios"),
    "facts": ("corpus_facts",),
}
ONLINE = {
    "papers": (
        *("arc_challenge", "arc_easy", "commonsense_qa", "hellaswag", "mmlu_continuation", "openbookqa", "piqa", "sciq"),
        *("winogrande", "social_iqa", "boolq", "lambada_openai", "triviaqa", "nq_open", "drop", "agieval_en"),
        *("bbh_cot_fewshot", "gpqa_main_zeroshot"),
    )
}
BLOCK = 16
ACCURACIES = ("acc", "len_norm", "acc_norm")


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

    def __init__(self, model, tokenizer, batch_tokens: int = 4096, device: str = "cpu"):
        super().__init__()
        self._device = torch.device(device)
        self.model, self.tokenizer, self.batch_tokens = model.to(self.device).eval(), tokenizer, batch_tokens
        self.seq_len, self.prefix = model.cfg.seq_len, end_of_text(tokenizer)
        self.truncated = 0

    @property
    def tokenizer_name(self) -> str:
        return "suite-bpe"

    def encode(self, text: str) -> list[int]:
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

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        pairs = [self.encode_pair(*request.args) for request in requests]
        self.truncated += sum(len(context) + len(continuation) > self.seq_len + 1 for context, continuation in pairs)
        return self.score([list(self.windows(*pair)) if pair[1] else [] for pair in pairs])

    def loglikelihood_rolling(self, requests) -> list[float]:
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
            row_S, column_S, target_S, number_S = [], [], [], []
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
    def generate_until(self, requests) -> list[str]:
        """Greedy decoding; the text before the first of `until`. The whole sequence is run again for each token.

        Raises:
            UserError: a task asks for sampling.
        """
        states = []
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
                tokens = [state["tokens"] for state in batch]
                last_BD = self._hidden(tokens)[range(len(batch)), [len(row) - 1 for row in tokens]]
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


def evaluate(
    lm: ModelLM, tasks: Iterable[str], wheel: Path, corpus: Path, bios: BioS | None, limit: int | None = None
) -> list[dict]:
    """Rows of the table `evals`, without their run, of offline tasks.

    Args:
        tasks: names of files in evals/tasks, or suites (`SUITES`).
        wheel, corpus: of the evaluation sets; the prepared training corpus.
        bios: the people in the training stream; without any, suites leave the task out, as they do corpus_facts of a
            corpus without facts (the hub's have none).
        limit: items of each task, a random sample that is the same for every model; None is all.

    Raises:
        UserError: an unknown task, a missing file.
    """
    from lm_eval.evaluator import evaluate as run_tasks
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    metadata = {"wheel": str(wheel), "corpus": str(corpus), "bios": bios, "fits": lm.fits, "limit": limit}
    manager = TaskManager(include_defaults=False, include_path=str(TASKS_DIR), metadata=metadata)
    absent = {"bios"} if bios is None else set()
    absent |= set() if (facts := corpus / "facts.jsonl").is_file() and facts.stat().st_size else {"corpus_facts"}
    names = [name for task in tasks for name in SUITES.get(task, (task,)) if name == task or name not in absent]
    if not names:
        return []
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"no task {unknown[0]!r}: choose among {', '.join(SUITES)} or {', '.join(manager.all_tasks)}")
    if "bios" in names and bios is None:
        raise UserError(f"task bios asks for people of the training stream, and {corpus} has none: mix them into it")
    # What lm-eval's simple_evaluate adds is global seeds, of no use to greedy scoring, and a slow report on the machine.
    results = run_tasks(lm, manager.load(names), bootstrap_iters=1, log_samples=True)
    rows = []
    for name in names:
        better = results["higher_is_better"][name]
        for level, samples in _by_level(results["samples"][name]).items():
            shots = int(level) if name in MEMORY_TASKS and MEMORY_TASKS[name].is_shots and level else 0
            rows += [
                {"task": f"{name}/{level}" if level else name, "n_shot": shots, "higher_is_better": better[metric]}
                | _statistics(lm, metric, samples)
                for metric in samples[0]["metrics"]
                if level or metric != "bits_known"  # attributes differ in size: they add up, in _bits_per_parameter
            ]
        if "answer" in results["samples"][name][0]["doc"]:
            rows.append(_loss_per_token(lm, name, results["samples"][name]))
    return rows + (_bits_per_parameter(lm, rows, bios) if bios else [])


def _by_level(samples: list[dict]) -> dict[str, list[dict]]:
    """All samples under "", and those of each difficulty under its name."""
    groups = defaultdict(list, {"": samples})
    for sample in samples:
        if level := sample["doc"].get("level"):
            groups[level].append(sample)
    return groups


def _statistics(lm: ModelLM, metric: str, samples: list[dict]) -> dict:
    values = np.array([sample[metric] for sample in samples], dtype=float)
    clusters = [sample["doc"].get("item", number) for number, sample in enumerate(samples)]
    return {
        "metric": metric,
        "n": len(values),
        "value": float(values.mean()),
        "stderr": stderr(values, clusters),
        "chance": _chance(lm, metric, samples),
    }


def stderr(values: np.ndarray, clusters: list) -> float | None:
    """Standard error of the mean, items of one cluster (prompts of one question) counted as dependent."""
    sums = Counter()
    for deviation, cluster in zip(values - values.mean(), clusters, strict=True):
        sums[cluster] += deviation
    k = len(sums)
    return math.sqrt(sum(s * s for s in sums.values()) * k / (k - 1)) / len(values) if k > 1 else None


def _chance(lm: ModelLM, metric: str, samples: list[dict]) -> float | None:
    """What a model that is uniform over choices or over tokens, or a memory task's best rule without memory, would score."""
    if metric == "bits_known":
        return 0.0
    if metric == "bits_per_byte":
        bits = math.log2(lm.tokenizer.get_vocab_size())
        return float(np.mean([bits * len(lm.encode_pair(*pair)[1]) / _n_bytes(pair) for pair in map(_gold, samples)]))
    if metric in ACCURACIES and "chance" in samples[0]["doc"]:
        return float(np.mean([sample["doc"]["chance"] for sample in samples]))
    if metric in ACCURACIES and len(samples[0]["resps"]) > 1:
        return float(np.mean([1 / len(sample["resps"]) for sample in samples]))
    return 0.0 if metric == "acc" else None


def _gold(sample: dict) -> tuple[str, str]:
    """The context and the continuation whose loss is `bits_per_byte`."""
    return sample["arguments"][sample["doc"].get("gold", 0)]


def _n_bytes(pair: tuple[str, str]) -> int:
    return len(pair[1].encode())


def _loss_per_token(lm: ModelLM, name: str, samples: list[dict]) -> dict:
    """Mean over items of the right answer's loss per token, in nats; a uniform model scores ln V."""
    values = np.array([-s["resps"][0][0][0] / len(lm.encode_pair(*_gold(s))[1]) for s in samples])
    return {
        "task": name,
        "metric": "loss_per_token",
        "n_shot": 0,
        "n": len(values),
        "value": float(values.mean()),
        "stderr": stderr(values, list(range(len(values)))),
        "chance": math.log(lm.tokenizer.get_vocab_size()),
        "higher_is_better": False,
    }


def _bits_per_parameter(lm: ModelLM, rows: list[dict], bios: BioS) -> list[dict]:
    """Knowledge of the trained people over the parameters that hold it (Allen-Zhu & Li 2024, without the names' bits).

    An attribute of which less than nothing is known counts as nothing; the standard errors of the attributes, which are
    asked of different samples of people, add in squares.
    """
    known = [row for row in rows if row["task"].startswith("bios/") and row["metric"] == "bits_known"]
    if not known:
        return []
    counted = [row for row in known if row["value"] > 0]
    bits = sum(row["value"] for row in counted)
    spread = math.hypot(*(row["stderr"] or 0.0 for row in counted))
    cost = lm.model.cfg.cost().without("embedding")
    made = [("bits_per_person", 1.0)]
    made += [("bits_per_parameter", bios.n_people / cost.params)]
    made += [("bits_per_active_parameter", bios.n_people / cost.active_params)]
    shared = {"task": "bios", "n_shot": 0, "n": sum(row["n"] for row in known), "chance": 0.0, "higher_is_better": True}
    return [{"metric": name, "value": bits * scale, "stderr": spread * scale} | shared for name, scale in made]


def evaluate_online(lm: ModelLM, tasks: Iterable[str], limit: int | None = None) -> list[dict]:
    """Rows of lm-eval's own tasks, by its names and with its metrics. `tasks` are such names, or keys of `ONLINE`.

    Raises:
        UserError: a task is unknown or its data cannot be fetched.
    """
    from lm_eval.evaluator import evaluate as run_tasks
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, loaded = TaskManager(), {"tasks": {}, "groups": {}, "group_map": {}}
    for name in [name for task in tasks for name in ONLINE.get(task, (task,))]:
        try:
            for kind, found in manager.load([name]).items():
                loaded[kind].update(found)
        except Exception as error:  # the hub's clients and the file formats each have their own tree of errors
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--online could not load task {name!r} ({reason}): it needs the internet and lm-eval's name of a task; "
                "without --online the tasks in evals/tasks run from local files"
            ) from error
    results = run_tasks(lm, loaded, limit=limit, bootstrap_iters=1000, log_samples=True)
    rows = []
    for name, scores in results["results"].items():
        samples = results["samples"].get(name, [])
        for key, value in scores.items():
            metric, _, which = key.partition(",")
            if not which or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = scores.get(f"{metric}_stderr,{which}")
            better = results["higher_is_better"].get(name, {}).get(metric)
            n = results["n-samples"].get(name, {}).get("effective") or scores.get("sample_count", {}).get(metric, 0)
            rows.append(
                {
                    "task": name,
                    "metric": metric if which == "none" else f"{metric} ({which})",
                    "n_shot": results["n-shot"].get(name, 0),
                    "n": int(n),
                    "value": float(value),
                    "stderr": error if isinstance(error, float) else None,  # lm-eval writes 'N/A'
                    "chance": _chance(lm, metric, samples) if metric in ACCURACIES and samples else None,
                    "higher_is_better": True if better is None else better,
                }
            )
    return rows


def refuse_foreign_kernels() -> None:
    """PyPI's package `kernels`, which transformers brings along, would be imported in place of ours.

    Raises:
        UserError: it is installed.
    """
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"the package kernels {version} is installed and hides this project's kernels/: run `pip uninstall kernels` in "
        "the environment of this suite"
    )


def limited(task: str, limit: int) -> tuple[str, int | None]:
    """The name and the number of items (None: all) in "NAME" or "NAME:ITEMS"."""
    name, colon, items = task.partition(":")
    if colon and not items.isdecimal():
        raise UserError(f"--tasks {task!r}: the limit after the colon is no whole number")
    return name, int(items or limit) or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    suites = ["perplexity", *SUITES]
    names = f"task names or suites, NAME:ITEMS for another limit (default: {' '.join(suites)})"
    parser.add_argument("--tasks", nargs="*", default=suites, help=names)
    parser.add_argument("--limit", type=int, default=0, help="items of each task (default: 0, all of them)")
    parser.add_argument("--perplexity-tokens", type=int, default=0, help="of each source and held-out split (default: 0, all)")
    parser.add_argument("--online", nargs="*", default=[], help=f"names of lm-eval's own tasks, or {', '.join(ONLINE)}")
    parser.add_argument("--out", type=Path, help="CSV to write (default: evals.csv in the run's folder)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    refuse_foreign_kernels()
    # The layers above: only this entry point knows how a run lies on disk.
    from evals.load import open_run

    opened = open_run(args.run, args.device)
    lm = ModelLM(opened.model, opened.tokenizer, device=args.device)
    rows = []
    for task, limit in (limited(task, args.limit) for task in args.tasks):
        if task == "perplexity":
            rows += perplexity.rows(lm, opened.shards, n_tokens=args.perplexity_tokens)
        else:
            rows += evaluate(lm, [task], opened.wheel, opened.corpus, opened.bios, limit)
    if args.online:
        online = evaluate_online(lm, args.online, args.limit or None)
        rows += [row | {"task": f"{row['task']} (lm-eval)"} for row in online]
    if lm.truncated:
        print(f"{args.run}: {lm.truncated} prompts lost their left end to fit into {lm.seq_len} tokens", file=sys.stderr)
    schema.write(args.out or args.run / "evals.csv", "evals", [{"run": opened.name} | row for row in rows])


if __name__ == "__main__":
    run(main)
