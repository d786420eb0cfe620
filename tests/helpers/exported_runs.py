"""Finished runs of small models, and what exported folders give in a process that knows nothing of this repository."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from scored_models import TEXT

from evals.records.recipe import Train
from evals.records.runs import RunConfig
from evals.records.tensors import write_tensors
from workflows.prepare import train_bpe

# The folder that transformers is installed in; finding it imports nothing.
TRANSFORMERS = str(Path(importlib.util.find_spec("transformers").origin).parents[1])
ALONE = """
import importlib.util
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

found = {}
for folder in sys.argv[2:]:
    name = folder.rpartition("/")[2]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.tensor(tokenizer("The cat sat on the mat and the dog")["input_ids"])
    assert tokenizer.decode(tokens) == "The cat sat on the mat and the dog"
    assert not model.training
    found[f"{name}.ids"] = tokens.clone()
    with torch.no_grad():
        found[f"{name}.logits"] = model(tokens[None]).logits
    greedy = model.generate(tokens[None], max_new_tokens=12, do_sample=False, eos_token_id=None)
    found[f"{name}.greedy"] = greedy[0, len(tokens) :]
assert not any(importlib.util.find_spec(name) for name in ("models", "kernels", "evals"))
save_file({k: v.contiguous() for k, v in found.items()}, sys.argv[1])
"""


def prepared(folder: Path):
    """A data folder with a tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = train_bpe([TEXT], 400)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def finished(folder: Path, data: Path, model, seed=0):
    """A run with every weight away from its start, and its model."""
    torch.manual_seed(seed)
    built = model.build().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.requires_grad and not name.endswith("core_hHrr"):
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0.1)
        built.embedding.weight.mul_(8)  # far from uniform, so that greedy decoding has no near ties
    built.refresh()
    recipe = Train(tokens=1000, batch_size=1, seq_len=model.seq_len, lr=0.01)
    config = RunConfig(
        run=folder.name, preset="test", arch=model.arch.name, size="xs", seed=seed, data=str(data), model=model, train=recipe
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    write_tensors(folder / "model.safetensors", built.state_dict(), {})
    return built


def alone(folders: list[Path], work: Path) -> dict[str, torch.Tensor]:
    """Tokens, logits and greedy continuations of exported folders, where nothing of this repository is on the path."""
    env = os.environ | {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = TRANSFORMERS
    command = [sys.executable, "-c", ALONE, work / "found.safetensors", *folders]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(work / "found.safetensors")
