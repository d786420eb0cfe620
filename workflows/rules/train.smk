# One rule per size, so that the scheduler starts the long runs first. Checkpoints stay beside the declared outputs and
# survive a restart, which deletes only those.

RUN_TABLES = ("runs", "train", "health")
GATHERED = ("matched_compute", "counting", "arms")  # of the whole grid
# What later stages wait for. An adopted run has no weights, and whether one is adopted is known when its job runs: after the
# data. Where `adopt=false` was asked for, tables want the weights beside them, and the runs that lack them are trained.
TRAINED = "runs.csv" if GRID["adopt"] else "model.safetensors"
WEIGHTS = (
    {} if GRID["adopt"] else {"weights": RESULTS + "/runs/{run}/model.safetensors"}
)
# Whether jobs are a cluster's, seen from a job as well, in which snakemake runs again and has cores.
IN_JOB = not workflow.is_main_process and "SLURM_JOB_ID" in os.environ
CLUSTER = IN_JOB or not CORES
LAUNCH = os.path.join(workflow.basedir, "profiles/slurm/launch.sh")
SAVING = 240  # seconds that workers have after the signal, of the 300 that profiles/slurm gives
ADOPT = "{PYTHON:q} -m workflows.adopt {RESULTS:q} {wildcards.run:q} || "


def runs_of(size):
    return [run for run, entry in GRID["runs"].items() if entry["size"] == size]


def cost_of(size):
    return max(
        GRID["runs"][run]["flops_per_token"] * GRID["runs"][run]["tokens"]
        for run in runs_of(size)
    )


def workers_of(size):
    return max(GRID["runs"][run]["workers"] for run in runs_of(size))


def spread_of(size):
    """How its runs are spread over workers; runs of a size are spread alike."""
    return Parallel(**GRID["runs"][runs_of(size)[0]]["parallel"])


def nodes_of(size):
    """Nodes that a job takes; one machine takes all workers itself."""
    return spread_of(size).nodes if CLUSTER else 1


def threads_of(size):
    """Threads of all workers that a node has."""
    runs = [GRID["runs"][run] for run in runs_of(size)]
    return max(run["threads"] * run["workers"] for run in runs) // nodes_of(size)


def resources_of(size):
    """What a job asks for. One of several nodes is what Slurm's plugin calls mpi: its command starts a task on each."""
    nodes, gpus = nodes_of(size), GPU * workers_of(size)
    if nodes == 1:
        return {"gpu": gpus}
    gpus = {"gres": f"gpu:{gpus // nodes}", "tasks_per_gpu": 0} if gpus else {}
    return {"mpi": "srun", "nodes": nodes, "tasks": nodes} | gpus


def start_of(run):
    """Words of a run's command up to its module; on a cluster one that was told to stop goes back into the queue."""
    size = GRID["runs"][run]["size"]
    nodes, workers, spread = nodes_of(size), workers_of(size), spread_of(size)
    words = ["bash", LAUNCH, nodes, threads_of(size), PYTHON] if CLUSTER else [PYTHON]
    if workers == 1:
        return words
    words += ["-m", "workflows.launch", "--standalone"] if nodes == 1 else []
    words += ["--nproc-per-node", workers // nodes]
    words += ["--max-restarts", spread.restarts] if spread.restarts else []
    return words + (["--shutdown-timeout", SAVING] if CLUSTER else [])


def options_of(run):
    size = GRID["runs"][run]["size"]
    return spread_of(size).options() if workers_of(size) > 1 else []


for size_rank, size_name in enumerate(
    sorted({entry["size"] for entry in GRID["runs"].values()}, key=cost_of)
):

    rule:
        name:
            f"train_{size_name}"
        input:
            data=rules.prepare.output,
            config=RESULTS + "/runs/{run}/config.yaml",
        output:
            **{table: RESULTS + f"/runs/{{run}}/{table}.csv" for table in RUN_TABLES},
            **WEIGHTS,
        log:
            RESULTS + "/logs/{run}.log",
        wildcard_constraints:
            run="|".join(map(re.escape, runs_of(size_name))),
        priority: size_rank
        threads: threads_of(size_name)
        resources:
            **resources_of(size_name),
        params:
            folder=RESULTS + "/runs/{run}",
            sha=lambda wildcards: GRID["runs"][wildcards.run]["sha"],
            source=lambda wildcards: GRID["runs"][wildcards.run]["source"],
            module=[
                "workflows.train" if workers_of(size_name) == 1 else "workflows.worker"
            ],
            # No part of what a run was made by: snakemake forgets params that depend on threads.
            start=lambda wildcards, threads: start_of(wildcards.run),
            options=lambda wildcards, threads: options_of(wildcards.run),
        shell:
            LOGGED
            + (ADOPT if GRID["adopt"] else "")
            + "exec {params.start:q} -m {params.module:q} {params.folder:q} --patience 60 {params.options:q}"


def tables_of(runs):
    names = [f"{table}.csv" for table in RUN_TABLES]
    if "adopt" in config and not GRID["adopt"]:
        names.append(TRAINED)
    return [f"{RESULTS}/runs/{run}/{name}" for run in runs for name in names]


DEFAULT_RUNS = list(
    dict.fromkeys(
        GRID["grid"]
        + [arm["run"] for arm in GRID["arms"] if arm["chain"] in GRID["chains"]]
    )
)


# Finished runs of other targets belong into the tables too: when there are new ones, gather runs again.
OTHERS_FINISHED = [
    run
    for run in GRID["runs"]
    if run not in DEFAULT_RUNS and Path(RESULTS, "runs", run, "runs.csv").exists()
]


rule gather:
    input:
        tables_of(DEFAULT_RUNS),
        rules.data_card.output,
    output:
        [f"{RESULTS}/{table}.csv" for table in (*RUN_TABLES, *GATHERED)],
    log:
        f"{RESULTS}/logs/gather.log",
    params:
        finished=OTHERS_FINISHED,
        source=source_of("gather"),
    shell:
        LOGGED + "exec {PYTHON:q} -m workflows.gather {RESULTS:q}"


PARTS = {f"ablation_{chain}": (chain, "arms") for chain in GRID["all_chains"]} | {
    "tuning": ("tuning", "tuning")
}

# Loop variables become globals of snakemake itself, so they have names that it does not use.
for part_target, (part_chain, part_rows) in PARTS.items():

    rule:
        name:
            part_target
        input:
            tables_of(
                row["run"]
                for row in GRID[part_rows]
                if row.get("chain", "tuning") == part_chain
            ),
            rules.data_card.output,
        output:
            tables=directory(f"{RESULTS}/{part_target}"),
            page=f"reports/{PRESET}.{part_target}.html",
        log:
            f"{RESULTS}/logs/{part_target}.log",
        params:
            chain=part_chain,
            source=source_of("gather", "report"),
        shell:
            LOGGED
            + "{PYTHON:q} -m workflows.gather {RESULTS:q} --chain {params.chain:q} --out {output.tables:q}"
            " && {PYTHON:q} -m reports.build --results {output.tables:q} --out {output.page:q}"
