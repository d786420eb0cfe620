# What follows from tables: cost, verdicts, laws and answers, and experiments on runs that are there.


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
# these architectures, of those at the one that was tuned, or the largest. A job for each architecture; rates are chosen on its
# first seed.
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


TUNED_SIZE = GRID["tuning"][0]["size"] if GRID["tuning"] else None
TAUGHT_SIZE = max(
    {GRID["runs"][run]["size"] for run in GRID["grid"]},
    key=lambda size: (
        min((len(seeds_of(arch, size)) for arch in TAUGHT), default=0),
        size == TUNED_SIZE,
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
