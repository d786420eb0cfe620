# What is measured of trained models: scores, and the bytes that a decoding step reads. A preset without `measure.evals` has no
# scores.

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
GRID_OF = {
    size: [run for run in GRID["grid"] if GRID["runs"][run]["size"] == size]
    for size in dict.fromkeys(GRID["runs"][run]["size"] for run in GRID["grid"])
}
for grid_size, grid_runs in GRID_OF.items():

    rule:
        name:
            f"grid_{grid_size}"
        input:
            tables_of(grid_runs),
            [
                f"{RESULTS}/evals/{batch}.csv"
                for batch, runs in (EVALS_BATCHES.items() if EVALS else ())
                if not set(grid_runs).isdisjoint(runs)
            ],
            [f"{RESULTS}/access/{run}.csv" for run in COUNTED if run in grid_runs],
