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


def weights_of(runs):
    return [f"{RESULTS}/runs/{run}/model.safetensors" for run in runs]


# What routing reads is counted in the largest models of the grid, of the first seed.
LARGEST = GRID["runs"][max(GRID["grid"], key=lambda run: GRID["runs"][run]["params"])]
COUNTED = [
    run
    for run in GRID["grid"]
    if all(GRID["runs"][run][key] == LARGEST[key] for key in ("size", "seed"))
]


rule access:
    input:
        weights_of(COUNTED),
    output:
        f"{RESULTS}/access.csv",
    benchmark:
        f"{RESULTS}/benchmarks/access.tsv"
    params:
        runs=COUNTED,
        source=fingerprint("evals.counted"),
    shell:
        "exec {PYTHON} -m evals.counted --results {RESULTS} --runs {params.runs} --papers --out {output}"


rule modelled:
    output:
        latency=f"{RESULTS}/latency_modelled.csv",
        statements=f"{RESULTS}/statements.csv",
    params:
        source=fingerprint("evals.roofline"),
        gpus=contents(workflow.basedir, "evals/gpus.yaml"),
    shell:
        "exec {PYTHON} -m evals.roofline --out {output.latency} --statements {output.statements}"


if EVALS:
    # The grid, and the controls that show that a score can move.
    CONTROLS = [arm["run"] for arm in GRID["arms"] if arm["chain"] == "controls"]
    EVALUATED = [run for run in DEFAULT_RUNS if run in GRID["grid"] or run in CONTROLS]
    MEASURED.append(f"{RESULTS}/evals.csv")

    rule evals:
        input:
            RESULTS + "/runs/{run}/model.safetensors",
        output:
            RESULTS + "/runs/{run}/evals.csv",
        benchmark:
            RESULTS + "/benchmarks/evals.{run}.tsv"
        wildcard_constraints:
            run="|".join(map(re.escape, EVALUATED)),
        resources:
            gpu=1,
        params:
            folder=RESULTS + "/runs/{run}",
            flags=flags(
                {("tasks" if k == "suites" else k): v for k, v in EVALS.items()}
            ),
            source=fingerprint("evals.harness", "evals.tasks.utils"),
            tasks=contents(workflow.basedir, "evals/tasks/*.yaml"),
        shell:
            "exec {PYTHON} -m evals.harness --run {params.folder} {params.flags} --out {output}"

    rule evaluate:
        input:
            [f"{RESULTS}/runs/{run}/evals.csv" for run in EVALUATED],
        output:
            f"{RESULTS}/evals.csv",
        params:
            source=fingerprint("workflows.gather"),
        shell:
            "exec {PYTHON} -m workflows.gather {RESULTS} --table evals"


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
        benchmark:
            f"{RESULTS}/benchmarks/latency.tsv"
        priority: -1
        threads: workflow.cores
        resources:
            gpu=GRID["gpus"],
        params:
            source=fingerprint("evals.latency", "evals.counters"),
        shell:
            "env THP_MEM_ALLOC_ENABLE=1 {PYTHON} -m evals.latency"
            " --results {RESULTS} --out {output.steps} --machine {output.machine}"
            " && exec {PYTHON} -m evals.counters --results {RESULTS} --out {output.counters}"


# What each stage cost, measured by snakemake, beside what the runs say of themselves.
rule cost:
    input:
        rules.gather.output,
        MEASURED,
    output:
        f"{RESULTS}/cost.csv",
    params:
        source=fingerprint("workflows.gather"),
    shell:
        "exec {PYTHON} -m workflows.gather {RESULTS} --table cost"


rule claims:
    input:
        rules.gather.output,
        MEASURED,
    output:
        f"{RESULTS}/claims.csv",
    params:
        source=fingerprint("evals.claims"),
        ledger=contents(
            f"{workflow.basedir}/evals", "claims.yaml", "gpus.yaml", "reference/*.csv"
        ),
    shell:
        "exec {PYTHON} -m evals.claims --results {RESULTS} --out {output}"


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


rule plan:
    output:
        f"{RESULTS}/plan.csv",
    threads: workflow.cores
    params:
        target=flags(TARGET),
        source=fingerprint("workflows.plan"),
        gpus=contents(workflow.basedir, "evals/gpus.yaml"),
    shell:
        "exec {PYTHON} -m workflows.plan {RESULTS:q} {params.target}"


rule speed:
    output:
        f"{RESULTS}/speed.csv",
    threads: workflow.cores
    params:
        source=fingerprint("evals.training_speed"),
    shell:
        "exec {PYTHON} -m evals.training_speed --out {output}"


rule peers:
    output:
        f"{RESULTS}/peers.csv",
    threads: workflow.cores
    params:
        source=fingerprint("evals.peers"),
    shell:
        "exec {PYTHON} -m evals.peers --out {output}"
