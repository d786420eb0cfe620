# What is measured beside training.


rule plan:
    output:
        f"{RESULTS}/plan.csv",
    threads: workflow.cores
    params:
        source=fingerprint("workflows.plan"),
    shell:
        "exec {PYTHON} -m workflows.plan {RESULTS}"


rule speed:
    output:
        f"{RESULTS}/speed.csv",
    threads: workflow.cores
    params:
        source=fingerprint("evals.training_speed"),
    shell:
        "exec {PYTHON} -m evals.training_speed --out {output}"
