# Text to tokens. The folder is keyed by its config, so presets with the same data share it.


def flags(options):
    """Words of the command line for a mapping: a list as several, a mapping as JSON, nothing for None; quote with `:q`."""
    words = []
    for key, value in options.items():
        if value is not None:
            value = json.dumps(value) if isinstance(value, dict) else value
            words += [f"--{key.replace('_', '-')}"]
            words += map(str, value if isinstance(value, list) else [value])
    return words


rule prepare:
    output:
        directory(GRID["data"]),
    log:
        f"{RESULTS}/logs/prepare.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    priority: 100
    params:
        flags=flags(GRID["data_config"]),
        pins=sha(pins_read(GRID["data_config"])),
        source=source_of("prepare"),
    shell:
        LOGGED
        + "exec {PYTHON:q} -m workflows.prepare {params.flags:q} --out {output:q} --cache results/data/wheels"


# What was prepared travels with the results: licences, counts, hashes.
rule data_card:
    input:
        rules.prepare.output,
    output:
        f"{RESULTS}/data.json",
    log:
        f"{RESULTS}/logs/data_card.log",
    shell:
        LOGGED + "cp {input:q}/meta.json {output:q}"
