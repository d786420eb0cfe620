# The report is a function of the CSVs in results/{preset}; it renders again whenever one of them changes.


rule report:
    input:
        rules.gather.output,
        rules.claims.output,
        rules.fits.output,
        rules.questions.output,
        rules.cost.output,
        MEASURED,
    output:
        report(f"reports/{PRESET}.html", category="report", labels={"preset": PRESET}),
    log:
        f"{RESULTS}/logs/report.log",
    params:
        asked_for=contents(
            RESULTS,
            "plan.csv",
            "scale.csv",
            "speed.csv",
            "step.csv",
            "peers.csv",
            "growth.csv",
            "diagnosis.csv",
            "coordinates.csv",
            "offload*.csv",
            "forgetting.csv",
        ),
        reference=f"{workflow.basedir}/results/reference",
        lent=contents(f"{workflow.basedir}/results/reference", "*.csv"),
        decided=contents(f"{workflow.basedir}/evals/claims", "decided.yaml"),
        source=source_of("report"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m reports.build --results {RESULTS:q} --reference {params.reference:q} --out {output:q}"
