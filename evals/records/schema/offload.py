"""Tables of decoding with value tables larger than memory: what `evals.offload` measures."""

from evals.records.schema.column import ARCH, DEVICE, RUN, Column, flag, number, text, whole

ADDRESSES = text(
    "addresses",
    "a trained run's on its test text, scaled onto a larger table so that its skew stays (evals/offload/trace.py), or uniform",
    choices=("text", "uniform"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "offload": (
        text("run", "run whose addresses were traced"),
        text("arch", "architecture of the model that is timed, the decode benchmark's with a larger table and random weights"),
        number("table_bytes", "bytes", "of the value tables at 16 bits a value, by which a table is named"),
        number("file_bytes", "bytes", "of the same rows at `bits`, scales included"),
        whole("rows", "rows", "of the value tables"),
        whole("bits", "", "of a value: 16 bfloat16, 8 and 4 whole numbers with one float32 scale a row"),
        ADDRESSES,
        text(
            "state",
            "`cold`: nothing of the file in memory at the start; `warm`: as much as the limit allows, by the reads before",
            choices=("cold", "warm"),
        ),
        flag("ahead", "whether rows are asked for when their addresses are known, or each waits for its page"),
        number("limit_bytes", "bytes", "of the table that may be in memory"),
        text(
            "limit",
            "what holds it: memory.max of the process's scope (which counts all it takes beyond its start), pages dropped by "
            "the process after each token (least recently read first), or nothing, because the file is smaller",
            choices=("cgroup v2", "pages dropped", "table fits"),
        ),
        whole("tokens_before", "tokens", "whose rows were read to fill a warm cell; empty if modelled", False),
        number("tokens_per_s", "tokens/s", "decoded one after the other at batch 1, logits included"),
        number("p50_ms", "ms", "median of a token"),
        number("p99_ms", "ms", "99th percentile of a token; empty if modelled", False),
        whole("n_tokens", "tokens", "timed; empty if modelled", False),
        number("resident_bytes", "bytes", "of the process at the end, mapped pages included; empty if modelled", False),
        number("cached_bytes", "bytes", "of the file in the page cache at the end; empty if modelled", False),
        number("rows_read", "rows", "per token, repeats within a layer not counted"),
        number("bytes_read", "bytes", "of these rows per token"),
        number("bytes_disk", "bytes", "read from the disk per token, whole pages; empty where the system does not say", False),
        number(
            "disk_ms", "ms", "that these bytes take at the random rate of `offload_disk`; modelled: at the published one", False
        ),
        text("kind", "how the time was obtained", choices=("measured", "modelled")),
        DEVICE,
        text("source", "of the rates of a modelled device", False),
    ),
    "offload_disk": (
        DEVICE,
        number("table_bytes", "bytes", "at 16 bits a value of the table whose file was read"),
        whole("bits", "", "of that file"),
        number("file_bytes", "bytes", "of that file"),
        text("pattern", "pages at random, or large reads in order", choices=("random", "in order")),
        whole("bytes_each", "bytes", "of one read"),
        whole("depth", "reads", "at a time"),
        text("how", "reads were kept from memory", choices=("O_DIRECT", "page cache dropped")),
        number("bytes_per_s", "bytes/s", "read"),
        whole("n_reads", "reads", "timed"),
    ),
    "offload_hits": (
        RUN,
        ARCH,
        text("size", "name of the size in the preset"),
        whole("seed", "", "of the run"),
        ADDRESSES,
        number("share", "fraction", "of the rows of all tables that a cache of the least recently used rows holds"),
        whole("capacity", "rows", "of that cache"),
        whole("rows", "rows", "of all tables"),
        number(
            "hit_rate", "fraction", "of the reads that it would hold, by stack distances; the first half of the reads fills it"
        ),
        whole("n_reads", "reads", "of the trace, of which the later half counts"),
    ),
    "offload_loss": (
        RUN,
        ARCH,
        text("size", "name of the size in the preset"),
        whole("seed", "", "of the run"),
        whole("bits", "", "of a value in the value tables; 32 is as trained"),
        number("loss", "nats/token", "on test text, headline sources weighted as in training"),
        number("delta", "nats/token", "loss minus that of 32 bits, paired over windows; empty for 32", False),
        number("stderr", "nats/token", "standard error of delta over windows; empty for 32 or with one window", False),
        whole("n_windows", "", "of text"),
        number("table_bytes", "bytes", "of the value tables at these bits, scales included"),
    ),
}
