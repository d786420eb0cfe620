# What is measured beside training.


rule plan:
    output:
        f"{RESULTS}/plan.csv",
    params:
        source=fingerprint("workflows.plan"),
    threads: workflow.cores
    shell:
        "exec {PYTHON} -m workflows.plan {RESULTS}"


rule speed:
    output:
        f"{RESULTS}/speed.csv",
    params:
        source=fingerprint("evals.training_speed"),
    threads: workflow.cores
    shell:
        "exec {PYTHON} -m evals.training_speed --out {output}"
