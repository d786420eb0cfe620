# What is measured beside training: scores of the trained models, bytes and times of a decoding step, and a ruling on every
# claim. A preset without `measure.evals` or `measure.latency` has no such stage.

EVALS, LATENCY = GRID["measure"]["evals"], GRID["measure"]["latency"]
MEASURED = [
    f"{RESULTS}/{table}.csv" for table in ("access", "latency_modelled", "statements")
]


def contents(root, *patterns):
    """Changes with the files below `root` that a stage reads beside its code and its inputs."""
    found = [path for pattern in patterns for path in sorted(Path(root).glob(pattern))]
    return sha([path.read_text() for path in found])


def trained(runs):
    return [f"{RESULTS}/runs/{run}/{TRAINED}" for run in runs]


# What reads a run's weights follows its training at once: a run that is whole can be committed, and its weights may go.
AFTER_TRAINING = 50


# What routing reads is counted in the largest models of the grid, of the first seed.
LARGEST = GRID["runs"][max(GRID["grid"], key=lambda run: GRID["runs"][run]["params"])]
COUNTED = [
    run
    for run in GRID["grid"]
    if all(GRID["runs"][run][key] == LARGEST[key] for key in ("size", "seed"))
]


# Each run keeps its rows, as it does its scores: they are counted once, and the declared outputs join them.
COUNT = "exec {PYTHON:q} -m evals.access.counted --results {RESULTS:q} --runs {params.runs:q} --out {output:q}"


rule count:
    input:
        lambda wildcards: trained([wildcards.counted]),
    output:
        RESULTS + "/access/{counted}.csv",
    log:
        RESULTS + "/logs/access.{counted}.log",
    benchmark:
        RESULTS + "/benchmarks/access.{counted}.tsv"
    wildcard_constraints:
        counted="|".join(map(re.escape, COUNTED)),
    priority: AFTER_TRAINING
    params:
        runs=lambda wildcards: wildcards.counted,
        source=source_of("access"),
    shell:
        LOGGED + COUNT


rule access:
    input:
        [f"{RESULTS}/access/{run}.csv" for run in COUNTED],
    output:
        f"{RESULTS}/access.csv",
    log:
        f"{RESULTS}/logs/access.log",
    params:
        runs=COUNTED,
        source=source_of("access"),
    shell:
        LOGGED + COUNT + " --papers"


rule modelled:
    output:
        latency=f"{RESULTS}/latency_modelled.csv",
        statements=f"{RESULTS}/statements.csv",
    log:
        f"{RESULTS}/logs/modelled.log",
    params:
        source=source_of("modelled"),
        gpus=contents(workflow.basedir, "evals/decode/gpus.yaml"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.decode.modelled --out {output.latency:q} --statements {output.statements:q}"


if EVALS:
    # The grid, and the controls that show that a score can move.
    CONTROLS = [arm["run"] for arm in GRID["arms"] if arm["chain"] == "controls"]
    EVALUATED = [
        run
        for run in DEFAULT_RUNS
        if (run in GRID["grid"] or run in CONTROLS)
        and (not EVALS["seeds"] or GRID["runs"][run]["seed"] in EVALS["seeds"])
    ]
    MEASURED.append(f"{RESULTS}/evals.csv")

    # One process scores up to `together` runs of a size: it makes the prompts once. Each run keeps its own evals.csv beside
    # the declared output, so a run that joins a batch, or one that fails, costs the others nothing. The smallest size, the
    # last to be trained, is shared by two processes: nothing is left for another core to do meanwhile.
    EVALS_OF = {
        size: [run for run in EVALUATED if GRID["runs"][run]["size"] == size]
        for size in dict.fromkeys(GRID["runs"][run]["size"] for run in EVALUATED)
    }
    LAST_TRAINED = min(EVALS_OF, key=cost_of)
    EVALS_BATCHES = {
        f"{size}.{start // together}": runs[start : start + together]
        for size, runs in EVALS_OF.items()
        for together in [-(-EVALS["together"] // (2 if size == LAST_TRAINED else 1))]
        for start in range(0, len(runs), together)
    }

    # One rule per size, as in training: the scheduler takes the largest first, so the cores end at nearly the same time.
    for evals_rank, evals_size in enumerate(sorted(EVALS_OF, key=cost_of)):

        rule:
            name:
                f"evals_{evals_size}"
            input:
                lambda wildcards: trained(EVALS_BATCHES[wildcards.batch]),
            output:
                RESULTS + "/evals/{batch}.csv",
            log:
                RESULTS + "/logs/evals.{batch}.log",
            benchmark:
                RESULTS + "/benchmarks/evals.{batch}.tsv"
            wildcard_constraints:
                batch=re.escape(evals_size) + r"\.\d+",
            priority: AFTER_TRAINING + evals_rank
            resources:
                gpu=GPU,
            params:
                folders=lambda wildcards: [
                    f"{RESULTS}/runs/{run}" for run in EVALS_BATCHES[wildcards.batch]
                ],
                flags=flags(
                    {
                        ("tasks" if k == "suites" else k): v
                        for k, v in EVALS.items()
                        if k not in ("seeds", "together")
                    }
                ),
                source=source_of("evaluate"),
                tasks=contents(workflow.basedir, "evals/scores/tasks/*.yaml"),
            shell:
                LOGGED
                + "exec {PYTHON:q} -m evals.scores.harness --run {params.folders:q} {params.flags:q} --out {output:q}"

    rule evaluate:
        input:
            [f"{RESULTS}/evals/{batch}.csv" for batch in EVALS_BATCHES],
        output:
            f"{RESULTS}/evals.csv",
        log:
            f"{RESULTS}/logs/evaluate.log",
        params:
            source=source_of("gather"),
        shell:
            LOGGED + "exec {PYTHON:q} -m workflows.gather {RESULTS:q} --table evals"


# One size of the grid with all that follows its training at once, so that a long preset can be made in an order of one's own.
for grid_size in dict.fromkeys(GRID["runs"][run]["size"] for run in GRID["grid"]):

    rule:
        name:
            f"grid_{grid_size}"
        input:
            tables_of(
                run for run in GRID["grid"] if GRID["runs"][run]["size"] == grid_size
            ),
            [
                f"{RESULTS}/evals/{batch}.csv"
                for batch, runs in (EVALS_BATCHES.items() if EVALS else ())
                if batch.rpartition(".")[0] == grid_size
                and not set(GRID["grid"]).isdisjoint(runs)
            ],
            [
                f"{RESULTS}/access/{run}.csv"
                for run in COUNTED
                if GRID["runs"][run]["size"] == grid_size
            ],


# Alone on the machine, and after everything else. Huge pages are asked for, as a server of such tables would. Of the same
# steps, what the GPU's own counters say; a table without rows where they cannot be read.
if LATENCY:
    MEASURED.append(f"{RESULTS}/latency.csv")

    rule latency:
        input:
            f"{RESULTS}/latency.yaml",
        output:
            steps=f"{RESULTS}/latency.csv",
            machine=f"{RESULTS}/machine.csv",
            counters=f"{RESULTS}/access_hardware.csv",
        log:
            f"{RESULTS}/logs/latency.log",
        benchmark:
            f"{RESULTS}/benchmarks/latency.tsv"
        priority: -1
        threads: MOST_THREADS
        resources:
            gpu=GPU,
            timing=1,
        params:
            source=source_of("latency"),
        shell:
            LOGGED + "env THP_MEM_ALLOC_ENABLE=1 {PYTHON:q} -m evals.decode.latency"
            " --results {RESULTS:q} --out {output.steps:q} --machine {output.machine:q}"
            " && exec {PYTHON:q} -m evals.access.hardware --results {RESULTS:q} --out {output.counters:q}"


# What each stage cost, measured by snakemake, beside what the runs say of themselves.
rule cost:
    input:
        rules.gather.output,
        MEASURED,
    output:
        f"{RESULTS}/cost.csv",
    log:
        f"{RESULTS}/logs/cost.log",
    params:
        source=source_of("gather"),
    shell:
        LOGGED + "exec {PYTHON:q} -m workflows.gather {RESULTS:q} --table cost"


rule claims:
    input:
        rules.gather.output,
        MEASURED,
    output:
        f"{RESULTS}/claims.csv",
    log:
        f"{RESULTS}/logs/claims.log",
    params:
        source=source_of("claims"),
        asked_for=contents(RESULTS, "forgetting.csv"),
        ledger=contents(
            f"{workflow.basedir}/evals",
            "claims/claims.yaml",
            "decode/gpus.yaml",
            "claims/reference/*.csv",
        ),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.claims.ledger --results {RESULTS:q} --out {output:q}"


# Scaling laws with intervals, the ranking by every counting rule, and gains as the compute that dense would need.
rule fits:
    input:
        rules.gather.output,
    output:
        fits=f"{RESULTS}/fits.csv",
        ranking=f"{RESULTS}/ranking.csv",
        equivalents=f"{RESULTS}/equivalents.csv",
    log:
        f"{RESULTS}/logs/fits.log",
    params:
        source=source_of("fits"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.laws.fits --results {RESULTS:q} --out {output.fits:q}"
        " --ranking {output.ranking:q} --equivalents {output.equivalents:q}"


# What neither paper answers; the test tokens that runs kept lie in their folders, as their tables do.
rule questions:
    input:
        rules.gather.output,
    output:
        answers=f"{RESULTS}/questions.csv",
        where=f"{RESULTS}/where.csv",
    log:
        f"{RESULTS}/logs/questions.log",
    params:
        source=source_of("questions"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.questions.ask --results {RESULTS:q} --out {output.answers:q} --where {output.where:q}"


# New facts for trained models, and what each way to teach them makes a model forget: at the size that has the most seeds of all
# these architectures, of those the largest. A job for each architecture; rates are chosen on its first seed.
TAUGHT = [
    arch
    for arch in ("dense", "moe8", "ultramem", "ultramem_v2")
    if any(GRID["runs"][run]["arch"] == arch for run in GRID["grid"])
]


def seeds_of(arch, size):
    runs = [run for run in GRID["grid"] if GRID["runs"][run]["arch"] == arch]
    return {
        GRID["runs"][run]["seed"]: run
        for run in runs
        if GRID["runs"][run]["size"] == size
    }


TAUGHT_SIZE = max(
    {GRID["runs"][run]["size"] for run in GRID["grid"]},
    key=lambda size: (
        min((len(seeds_of(arch, size)) for arch in TAUGHT), default=0),
        cost_of(size),
    ),
)


rule teach:
    input:
        lambda wildcards: trained(seeds_of(wildcards.taught, TAUGHT_SIZE).values()),
    output:
        RESULTS + "/forgetting/{taught}.csv",
    log:
        RESULTS + "/logs/forgetting.{taught}.log",
    benchmark:
        RESULTS + "/benchmarks/forgetting.{taught}.tsv"
    wildcard_constraints:
        taught="|".join(map(re.escape, TAUGHT)) or "none",
    resources:
        gpu=GPU,
    params:
        folders=lambda wildcards: [
            f"{RESULTS}/runs/{run}"
            for _, run in sorted(seeds_of(wildcards.taught, TAUGHT_SIZE).items())
        ],
        source=source_of("forgetting"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.forgetting.measure --runs {params.folders:q} --out {output:q}"


rule forgetting:
    input:
        expand(RESULTS + "/forgetting/{taught}.csv", taught=TAUGHT),
    output:
        f"{RESULTS}/forgetting.csv",
    log:
        f"{RESULTS}/logs/forgetting.log",
    params:
        source=source_of("forgetting"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m evals.forgetting.measure --join {input:q} --out {output:q}"


# Not part of the default target; the report shows them once they are made.
TARGET = plan_target(config)
# What was asked for is not known yet when this file is read, but as words of the command line.
if (
    TARGET
    and workflow.is_main_process
    and not {"plan", f"{RESULTS}/plan.csv"} & {*sys.argv}
):
    raise WorkflowError(
        "--config gpu and gpus say what `snakemake plan` predicts for; every other target uses the machine it runs on"
    )


# `scale`: the papers' sizes on many GPUs, the same whatever the preset. One job: a cluster is asked for nothing twice.
rule plan:
    output:
        plan=f"{RESULTS}/plan.csv",
        scale=f"{RESULTS}/scale.csv",
    log:
        f"{RESULTS}/logs/plan.log",
    threads: MOST_THREADS
    resources:
        gpu=GPU,
        timing=1,
    params:
        target=flags(TARGET),
        sources=[source_of("plan"), source_of("scale")],
        gpus=contents(workflow.basedir, "evals/decode/gpus.yaml"),
    shell:
        LOGGED
        + "{PYTHON:q} -m workflows.plan {RESULTS:q} {params.target:q}\n"
        + "exec {PYTHON:q} -m workflows.dry_run --out {output.scale:q}"


rule speed:
    output:
        speed=f"{RESULTS}/speed.csv",
        parts=f"{RESULTS}/step.csv",
    log:
        f"{RESULTS}/logs/speed.log",
    threads: MOST_THREADS
    resources:
        gpu=GPU,
        timing=1,
    params:
        source=source_of("speed"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m workflows.speed --out {output.speed:q} --parts {output.parts:q}"


rule peers:
    output:
        peers=f"{RESULTS}/peers.csv",
        growth=f"{RESULTS}/growth.csv",
    log:
        f"{RESULTS}/logs/peers.log",
    threads: MOST_THREADS
    resources:
        gpu=GPU,
        timing=1,
    params:
        source=source_of("peers"),
    shell:
        LOGGED + "{PYTHON:q} -m evals.peers --out {output.peers:q}"
        " && exec {PYTHON:q} -m evals.growth --out {output.growth:q}"


# Value tables larger than memory: their files, one at a time, take 16 GB of the cache folder. Asks for the weights of the runs
# of the grid that have value tables; those that were adopted have none and are left out.
OFFLOADED = [
    run
    for run in GRID["grid"]
    if any(
        row["arch"] == GRID["runs"][run]["arch"] and row.get("n_keys")
        for row in GRID["matched"]
    )
]
if LATENCY and GRID["measure"].get("offload") and OFFLOADED:

    rule offload:
        input:
            f"{RESULTS}/latency.yaml",
            trained(OFFLOADED),
        output:
            times=f"{RESULTS}/offload.csv",
            disk=f"{RESULTS}/offload_disk.csv",
            hits=f"{RESULTS}/offload_hits.csv",
            loss=f"{RESULTS}/offload_loss.csv",
        log:
            f"{RESULTS}/logs/offload.log",
        benchmark:
            f"{RESULTS}/benchmarks/offload.tsv"
        threads: MOST_THREADS
        resources:
            timing=1,
        params:
            runs=OFFLOADED,
            asked=GRID["measure"]["offload"],
            source=source_of("offload"),
        shell:
            LOGGED
            + "exec {PYTHON:q} -m evals.offload.measure --results {RESULTS:q} --runs {params.runs:q} --out {RESULTS:q}"


# What one GPU can measure in nine minutes, or the same code on tiny shapes where there is none: packed, and run from the pack, as
# on a bare machine. What is measured already is kept.
rule gpu:
    input:
        rules.prepare.output,
    output:
        touch(f"{RESULTS}/gpu.done"),
    log:
        f"{RESULTS}/logs/gpu.log",
    threads: MOST_THREADS
    resources:
        gpu=GPU,
        timing=1,
    params:
        source=source_of("gpu"),
        pack=f"{RESULTS}/gpu.pack",
        out=f"{RESULTS}/gpu",
    shell:
        LOGGED
        + "rm -rf {params.pack:q} && {PYTHON:q} -m evals.gpu --pack {params.pack:q} --corpus {input:q}"
        " && out=$(realpath -m {params.out:q}) && cd {params.pack:q} && exec env PYTHONPATH= {PYTHON:q} -m evals.gpu --out $out"


rule coordinates:
    output:
        f"{RESULTS}/coordinates.csv",
    log:
        f"{RESULTS}/logs/coordinates.log",
    params:
        source=source_of("coordinates"),
    shell:
        LOGGED + "exec {PYTHON:q} -m workflows.coordinates --out {output:q}"


# What did not fit, settled by experiments of its own: the arms of the diagnosis chains against their bases.
DIAGNOSIS = [arm for arm in GRID["arms"] if arm["chain"].startswith("diagnosis_")]


rule diagnosis:
    input:
        tables_of(arm["run"] for arm in DIAGNOSIS),
    output:
        f"{RESULTS}/diagnosis.csv",
    log:
        f"{RESULTS}/logs/diagnosis.log",
    params:
        source=source_of("gather", "diagnosis"),
        readings=contents(workflow.basedir, "evals/claims/diagnosis.yaml"),
    shell:
        LOGGED + "{PYTHON:q} -m workflows.gather {RESULTS:q}"
        " && exec {PYTHON:q} -m evals.claims.diagnosis --results {RESULTS:q} --out {output:q}"
