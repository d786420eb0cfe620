"""Writes a finished run as a folder that transformers loads: python -m models.export results/cpu/runs/ultramem-d64-s0 out

The folder holds config, safetensors, tokenizer, a model card and the modules of the suite that the model needs, copied with
their imports turned to the files beside them (models/memory.py becomes models_memory.py); no pickle, and nothing else of this
repository is needed to load it:

    AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)

A run is config.yaml and model.safetensors; its tokenizer lies with the data that the config names, its losses in runs.csv.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from models import arch_module
from models.stored import model_config

ROOT = Path(__file__).resolve().parents[1]
MAIN, END = "modeling_suite", "<|endoftext|>"
FAST = ("kernels.cpu", "kernels.triton")  # left behind: an export computes in plain torch
LOSSES = ("val_loss", "val_bpb", "test_loss", "test_bpb")
PROVENANCE = (
    *("run", "tokens", "seed", "seed_data", "seed_init", "seed_rest", "precision", "device", "torch"),
    *("git_commit", "git_dirty", "config_sha", "source_sha", "data_sha", "started", "ended"),
)


def source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    found = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in found if candidate.is_file()), None)


def ours(module: str) -> bool:
    return module.split(".")[0] in ("models", "kernels")


def flat(module: str) -> str:
    """A module's name in an exported folder."""
    return MAIN if module == "models.hub" else module.replace(".", "_")


def imported(node: ast.AST) -> list[str]:
    """The suite's modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if ours(alias.name)]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level and ours(node.module):
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        return [node.module, *(name for name in inside if source(name))]
    return []


def needed(roots: list[str]) -> list[str]:
    """`roots` and the suite's modules that they reach by import, without the fast kernels."""
    seen: set[str] = set()
    queue = list(roots)
    while queue:
        module = queue.pop()
        path = source(module)
        if module not in seen and path and not module.startswith(FAST):
            seen.add(module)
            queue += [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
    return sorted(seen)


def beside(node: ast.Import | ast.ImportFrom, carried: list[str]) -> str:
    """The import statement that finds the same in the files beside."""
    if missing := next((name for name in imported(node) if name not in carried), None):
        return f"raise ImportError('{missing} stays in the repository: an export computes in plain torch')"
    if isinstance(node, ast.Import):
        (alias,) = node.names
        return f"from . import {flat(alias.name)} as {alias.asname or alias.name}"
    lines = []
    for alias in node.names:
        name, known = f"{node.module}.{alias.name}", f" as {alias.asname}" if alias.asname else ""
        module = f"from . import {flat(name)} as {alias.asname or alias.name}"
        lines.append(module if name in carried else f"from .{flat(str(node.module))} import {alias.name}{known}")
    return "\n".join(lines)


def copied(module: str, carried: list[str]) -> str:
    """A module's text, its imports of the suite's modules turned to the files beside it and nothing else changed."""
    text = source(module).read_text()  # type: ignore[union-attr]  # carried modules have a file
    lines = text.splitlines()
    for node in sorted(ast.walk(ast.parse(text)), key=lambda node: -getattr(node, "lineno", 0)):
        if isinstance(node, ast.Import | ast.ImportFrom) and imported(node):
            indent = lines[node.lineno - 1][: node.col_offset]
            lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in beside(node, carried).split("\n")]
    return "\n".join(lines) + "\n"


def write_modules(model: dict[str, Any], out: Path) -> None:
    """The main file and what it needs, all of which its end imports: transformers copies what it finds in such statements,
    and would miss what is loaded by name."""
    archs = [model["arch"]["name"], model["arch"].get("memory", {}).get("name")]
    carried = needed(["models.hub", *(arch_module(name) for name in archs if name)])
    for module in carried:
        text = copied(module, carried)
        if module == "models.hub":
            named = [flat(name) for name in carried if name != module]
            text += "\n\nstand_alone()\n" + "".join(f"from .{name} import __name__ as _\n" for name in named)
        (out / f"{flat(module)}.py").write_text(text)


def config_json(model: dict[str, Any], end: int) -> dict[str, Any]:
    auto = {"AutoConfig": f"{MAIN}.SuiteConfig", "AutoModelForCausalLM": f"{MAIN}.SuiteForCausalLM"}
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    kind = {"model_type": "ultramem_suite", "architectures": ["SuiteForCausalLM"], "auto_map": auto, "dtype": "float32"}
    return kind | {"model": model} | ids


def card(config: dict[str, Any], row: dict[str, str], out: str) -> str:
    """The model card: what the model is, its losses, where it comes from; `row` is the run's of runs.csv, or empty."""
    model = config["model"]
    arch, cost = model["arch"]["name"], model_config(model).cost()
    sizes = {k: model[k] for k in ("d_model", "n_layers", "n_heads", "seq_len", "vocab_size")}
    sizes |= {"parameters": cost.params, "of these read per token": cost.active_params}
    sections = []
    for title, values in (
        ("Sizes", sizes),
        ("Losses, in nats per token (bpb: in bits per byte)", {name: row.get(name) for name in LOSSES}),
        ("Provenance", {name: row.get(name) for name in PROVENANCE}),
    ):
        lines = "".join(f"| {name} | {value} |\n" for name, value in values.items() if value)
        sections.append(f"## {title}\n\n" + (f"| | |\n|---|---|\n{lines}" if lines else "The run has no runs.csv.\n"))
    told = "\n".join(sections)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [ultramem-suite, {arch}]
---
# {config["run"]}

A language model of architecture `{arch}`, trained by the UltraMem reproducibility suite to compare architectures: too small
and too briefly trained for any other use. It loads with

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{out}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{out}", trust_remote_code=True)
```

{told}
The whole config is in config.json under `model`; the Python files are the suite's own, and compute in plain torch.
"""


def export(run: Path, out: Path) -> None:
    """Writes the run in folder `run` into folder `out`, which is made.

    Raises:
        ValueError: the run is not finished or adopted without weights, its config is not one of the present code, its data are
            gone or other ones than it was trained on, or `out` holds something else.
    """
    if not (run / "config.yaml").is_file() or not (run / "model.safetensors").is_file():
        raise ValueError(f"{run} is no finished run with weights: config.yaml and model.safetensors are not both there")
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = Path(config["data"])
    if not (data / "tokenizer.json").is_file():
        raise ValueError(f"{data / 'tokenizer.json'} does not exist: prepare the data of {run} again")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / f"{MAIN}.py").exists())):
        raise ValueError(f"{out} exists and is no export: name a folder that does not exist")
    try:
        with safe_open(run / "model.safetensors", "pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            tensors = {f"model.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a handle, not a dict
    except SafetensorError as error:
        raise ValueError(f"{run / 'model.safetensors'} is damaged ({error}): train the run again") from error
    trained_on = note.get("data")
    if trained_on and trained_on != json.loads((data / "meta.json").read_text())["sha256"]["train.bin"]:
        raise ValueError(f"{data} is not what {run} was trained on (sha256 {trained_on[:12]}): prepare that one again")
    end = Tokenizer.from_file(str(data / "tokenizer.json")).token_to_id(END)
    if end is None:
        raise ValueError(f"{data / 'tokenizer.json'} has no {END} token: prepare the data of {run} again")
    row: dict[str, str] = {}
    if (run / "runs.csv").is_file():
        with open(run / "runs.csv", newline="") as lines:
            row = next(csv.DictReader(lines))
    text = card(config, row, out.name)
    out.mkdir(parents=True, exist_ok=True)
    write_modules(config["model"], out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(data / "tokenizer.json", out / "tokenizer.json")
    tokens = {"bos_token": END, "eos_token": END, "pad_token": END, "padding_side": "left"}
    limit = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["model"]["seq_len"]}
    limit |= {"model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False}
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": False}
    for name, content in (
        ("config.json", config_json(config["model"], end)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", limit | tokens),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    (out / "README.md").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.export",
        description="Writes a finished run as a folder that transformers loads, with all that it needs.",
        epilog="example: python -m models.export results/cpu/runs/ultramem-d64-s0 out",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; an export in it is replaced")
    args = parser.parse_args()
    try:
        export(args.run, args.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {sum(1 for _ in args.out.iterdir())} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
