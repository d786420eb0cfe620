# What is measured or modelled of time, memory and disk, most of it alone on the machine.

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


# And the papers' sizes on many GPUs, the same whatever the preset, in the same job: it takes seconds.
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
        source=source_of("plan", "scale"),
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
