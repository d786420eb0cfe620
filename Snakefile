# snakemake --cores all                                  the default preset, to reports/cpu.html
# snakemake --cores all --config preset=smoke            another preset
# snakemake --cores all ablation_ultramem_v2             one ablation; see workflows/configs/ablations.yaml
# snakemake --cores all latency                          one stage: access evaluate latency modelled claims fits questions forgetting speed peers coordinates
# snakemake plan --cores 1 --config preset=paper gpu=H100 gpus=64   hours, memory and disk, before anything runs
import json
import os
import re
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)
os.environ["PYTHONPATH"] = workflow.basedir

from evals.records.errors import UserError
from workflows import events
from workflows.corpus import pins_read
from workflows.grid import load_grid, plan_target
from workflows.parallel.settings import Parallel
from evals.records.provenance import sha, stage_source

try:
    GRID = load_grid(config, Path("results"))
except UserError as error:
    raise WorkflowError(str(error)) from None

PRESET = GRID["preset"]
RESULTS = GRID["folder"]
PYTHON = sys.executable


# A job's errors go to its log, which snakemake names when it fails, and to the terminal; `tee` outlives a stop of the job.
LOGGED = "exec 2> >(trap '' INT TERM; exec tee {log:q} >&2); "


def source_of(*stages):
    """What a rule's code is: the rule runs again when it changes."""
    return [stage_source(stage, GRID["layers"]) for stage in stages]


# Cores of this machine; none with a cluster's executor, where a job asks for what it takes itself.
CORES = workflow.resource_settings.cores
MOST_THREADS = CORES or max(
    run["threads"] * run["workers"] for run in GRID["runs"].values()
)

# GPUs that a worker asks for: one where this machine has some, or where the preset is for clusters that do.
GPU = int(GRID["gpu_jobs"] or bool(CORES and GRID["gpus"]))
if CORES and GRID["gpus"] and "gpu" not in workflow.global_resources:
    workflow.global_resources["gpu"] = GRID["gpus"]
# Stages that measure time ask for one `timing` and, beside it, for every core: one at a time, and nothing beside them.
if "timing" not in workflow.global_resources:
    workflow.global_resources["timing"] = 1


# What whoever calls `make` sees of it; nothing where snakemake was started without workflows/start.py.
events.listen(workflow)


onstart:
    events.forecast(workflow, GRID)


rule all:
    input:
        f"reports/{PRESET}.html",


include: "workflows/rules/data.smk"
include: "workflows/rules/train.smk"
include: "workflows/rules/measure.smk"
include: "workflows/rules/time.smk"
include: "workflows/rules/conclude.smk"
include: "workflows/rules/report.smk"
