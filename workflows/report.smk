# The report is a function of the CSVs in results/{preset}; it renders again whenever one of them changes.


rule report:
    input:
        rules.gather.output,
        rules.claims.output,
        rules.cost.output,
        MEASURED,
    output:
        report(f"reports/{PRESET}.html", category="report", labels={"preset": PRESET}),
    params:
        asked_for=contents(RESULTS, "plan.csv", "speed.csv", "peers.csv", "diagnosis.csv", "coordinates.csv"),
        source=fingerprint("reports.build"),
    shell:
        "exec {PYTHON} -m reports.build --results {RESULTS} --out {output}"
