# snakemake --cores all                                  the default preset, to reports/cpu.html
# snakemake --cores all --config preset=smoke            another preset
# snakemake --cores all ablation_ultramem_v2             one ablation; see workflows/configs/ablations.yaml
# snakemake --cores all latency                          one stage: access evaluate latency modelled claims speed peers coordinates
# snakemake plan --cores 1 --config preset=paper gpu=H100 gpus=64   hours, memory and disk, before anything runs
import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)
os.environ["PYTHONPATH"] = workflow.basedir

from workflows.errors import UserError
from workflows.grid import load_grid
from workflows.presets import plan_target
from workflows.provenance import fingerprint, sha

try:
    GRID = load_grid(config, Path("results"))
except UserError as error:
    raise WorkflowError(str(error)) from None

PRESET = GRID["preset"]
RESULTS = f"results/{PRESET}"
PYTHON = sys.executable

if "gpu" not in workflow.global_resources:
    workflow.global_resources["gpu"] = GRID["gpus"]


rule all:
    input:
        f"reports/{PRESET}.html",


include: "workflows/data.smk"
include: "workflows/train.smk"
include: "workflows/measure.smk"
include: "workflows/report.smk"
