"""The code of the README's section "Use the layers" runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys

from exported_runs import TRANSFORMERS, finished, prepared
from memory_layers import MODELS, model_of
from repository import ENV, ROOT

SECTION = (ROOT / "README.md").read_text().split("## Use the layers\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.M | re.S)


def test_every_block_runs(tmp_path):
    commands = [shlex.split(line) for kind, text in BLOCKS if not kind for line in text.splitlines()]
    script = "\n".join(text for kind, text in BLOCKS if kind == "python")
    assert (len(commands), len(BLOCKS)) == (1, 5)
    data = tmp_path / "results/data"
    vocab = prepared(data).get_vocab_size()
    for _, _, module, run, _ in commands:
        assert module == "models.export"
        finished(tmp_path / run, data, model_of(MODELS["v2"], vocab_size=vocab, seq_len=64))
    env = ENV | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), TRANSFORMERS)),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    script += "\nassert y.shape == (2, 16, 64)\nassert loss.isfinite()\nassert logits.isfinite().all()\n"
    for words in (*commands, ["python", "-c", script]):
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip()
