"""Tables of one GPU (`python -m evals.gpu`), and of the papers' sizes before anybody has the GPUs (`snakemake plan`)."""

from dataclasses import replace

from evals.records.schema.column import ARCH, DEVICE, Column, flag, number, percentiles, text, whole
from evals.records.schema.measured import TABLES as MEASURED
from evals.records.schema.trained import TABLES as TRAINED

# Of every row of a part: what measured it.
MACHINE = (
    DEVICE,
    text("driver", "version of the device's driver; `none` on a CPU"),
    text("cuda", "version that torch was built for; `none` without"),
    text("torch", "version"),
    text("triton", "version; `none` where it is not installed"),
    text("python", "version"),
    text("source", "fingerprint of the code that measured"),
)
ITEM = text("item", "what was measured, the key that a second call goes on by")
TIMED = ("p20_ms", "p50_ms", "p80_ms", "bytes_declared")  # a row of hardware counters has none
OF_RUNS = (
    "run", "arch", "size", "seed", "d_model", "n_layers", "params", "active_params", "tokens", "steps", "train_loss",
    "val_loss", "test_loss", "tokens_per_s", "wall_s", "precision", "status", "config_sha", "source_sha", "data_sha", "resumed",
)  # fmt: skip

TABLES: dict[str, tuple[Column, ...]] = {
    "gpu_checks": (
        ITEM,
        text("kernel", "operation of `kernels`"),
        text("served_by", "implementation that serves the device", choices=("reference", "native", "triton")),
        text(
            "check",
            "against its twin in float64; bits of several runs; a table beyond 2^31 elements",
            choices=("float64", "repeats", "beyond 31 bits"),
        ),
        text("dtype", "of what is read"),
        flag("passed", "whether it holds"),
        number("worst", "", "largest error of result and gradients over what is allowed of it; 1 is the limit", False),
        number("seconds", "s", "that the check took"),
        text("note", "what else there is to say", False),
        *MACHINE,
    ),
    "gpu_speed": (
        ITEM,
        text("operation", "what is timed"),
        text("impl", "whose code: `ours`, `torch` or a peer's"),
        text("shape", "sizes, in the letters of `kernels`"),
        text("dtype", "of weights and activations"),
        *percentiles("one call with cold caches"),
        number("ratio", "", "speed over that of `versus`, median of interleaved pairs; above 1 is faster"),
        text("versus", "implementation that is the yardstick of the ratio"),
        whole("n_iters", "", "timed calls"),
        whole("rows", "", "distinct table rows or experts that are read", False),
        number("bytes", "bytes", "the least that has to move", False),
        number("flops", "FLOPs", "of products", False),
        number("bytes_per_s", "bytes/s", "bytes over the median", False),
        number("copy_bytes_per_s", "bytes/s", "read and written by a copy on this device, measured beside", False),
        number("product_flops_per_s", "FLOPs/s", "of a large product in bf16 on this device, measured beside", False),
        number("share", "fraction", "time of these bytes and FLOPs at those two rates, over the median", False),
        *MACHINE,
    ),
    "gpu_decode": (
        ITEM,
        text("model", "name in `models.count`"),
        whole("stored_params", "parameters", "of the model that was timed, without embedding", False),
        *(
            replace(column, required=column.required and column.name not in TIMED)
            for column in MEASURED["latency"]
            if column.name != "device"
        ),
        number("hardware_bytes", "bytes", "read from the device's memory in the step, by its own counters", False),
        *MACHINE,
    ),
    "gpu_grid": (
        ITEM,
        *(column for column in TRAINED["runs"] if column.name in OF_RUNS),
        *MACHINE,
    ),
    "scale": (
        text("model", "a paper's model"),
        ARCH,
        whole("params", "parameters", "stored, embedding included"),
        whole("active_params", "parameters", "activated by a token, embedding left out"),
        whole("gpus", "", "that train it, one worker each"),
        text(
            "partition",
            "values by `number` (rows come back), `pooled` (by number, sums come back), by `dimension`; experts; none to part",
            choices=("number", "pooled", "dimension", "experts", "none"),
        ),
        whole("tokens", "tokens", "of a step, over all GPUs"),
        whole("micro_tokens", "tokens", "that a GPU holds at a time"),
        number("parameters_gb", "GB", "per GPU: float32 weights, a GPU's share"),
        number("gradients_gb", "GB", "per GPU"),
        number("moments_gb", "GB", "per GPU"),
        number("activations_gb", "GB", "per GPU: of one micro-batch, with activation checkpointing"),
        number("buffers_gb", "GB", "per GPU: gathered weights of two blocks, what is exchanged, addresses"),
        number("memory_gb", "GB", "per GPU, the sum"),
        number("device_gb", "GB", "that a GPU has"),
        text("fits", "whether nine tenths of the GPU hold it", choices=("fits", "does not fit")),
        number("dense_traffic_gb", "GB", "a GPU sends in a step for the dense part"),
        number("sparse_traffic_gb", "GB", "a GPU sends in a step for tables or experts"),
        flag("cheaper", "whether the partition moves no more bytes than the other one"),
        number("compute_s", "s", "of a step: FLOPs at the assumed share of the peak"),
        number("exchange_s", "s", "of a step: traffic at the assumed bandwidth between GPUs"),
        number("step_s", "s", "of a step: the two one after the other"),
        number("days", "days", "of the paper's tokens, if it fitted", False),
        DEVICE,
    ),
}
