# Text to tokens. The folder is keyed by its config, so presets with the same data share it.


def flags(options):
    """Command-line flags of a mapping: a list as several words, a mapping as JSON, nothing for None."""
    words = []
    for key, value in options.items():
        if value is not None:
            value = json.dumps(value) if isinstance(value, dict) else value
            words += [f"--{key.replace('_', '-')}"]
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


rule prepare:
    output:
        directory(GRID["data"]),
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    priority: 100
    params:
        flags=flags(GRID["data_config"]),
        source=fingerprint("workflows.prepare"),
    shell:
        "exec {PYTHON} -m workflows.prepare {params.flags} --out {output} --cache results/data/wheels"


# What was prepared travels with the results: licences, counts, hashes.
rule data_card:
    input:
        rules.prepare.output,
    output:
        f"{RESULTS}/data.json",
    shell:
        "cp {input}/meta.json {output}"
