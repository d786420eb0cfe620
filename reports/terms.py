"""What the words of the report mean, for readers who come from neither paper."""

from collections.abc import Iterator

from reports.page import Facts, Results

TERMS = (
    (
        "nats per token",
        "Cross-entropy with the natural logarithm: 0.1 nats less is about a tenth more probability of the right token.",
    ),
    ("MoE-2, MoE-8", "Mixture of experts with 2 or 8 experts active for a token, of as many parameters in all."),
    ("PKM", "Product-key memory: a table of values, of which a token reads those whose two half-keys match its query best."),
    (
        "UltraMem",
        "PKM refined by paper P1: keys scored by a small core (TDQKR, Tucker-decomposed query-key retrieval), each "
        "stored value read through several projections (IVE, implicit value expansion), its output added some blocks "
        "later.",
    ),
    ("UltraMemV2", "The design of paper P2: a smaller memory in every block, each value weighted by a neuron of its own."),
    (
        "activated parameters",
        "Those that one token is multiplied with, embedding left out; stored parameters are all of them.",
    ),
    ("sparse ratio", "Stored in experts or value tables over activated parameters."),
    ("matched compute", "Models of one size spend the same FLOPs per token and, but for dense, store as many parameters."),
    ("size d64", "A backbone of width 64 (d_model); what else it has stands under Matched compute."),
    ("seed", "A run repeated with other random numbers; 95 % intervals come from such repeats, paired by seed."),
    ("chain, arm", "A series of ablations and one run in it; cumulative: each arm keeps the changes before it."),
    ("placebo", "A memory that cannot remember (one row, a frozen table, addresses that lead nowhere in particular)."),
    (
        "roofline",
        "The time of perfect code: bytes over this machine's bandwidth or products over its speed, the longer of both.",
    ),
    ("p20, p50, p80", "Of repeated timings, the time that a fifth, half and four fifths of them stay below."),
    (
        "used_share, kl_uniform",
        "Of experts or rows: the share that was picked at all, and how far their use is from equal (nats, 0 is equal).",
    ),
    ("top1_score, mean_score", "Weights that multiply what was picked: of the best pick, and mean over all picks."),
    (
        "recall_grid, recall_quadrant",
        "Share of the truly best values that the cheap search finds: of the whole grid, and of the part of it that the "
        "search looks at.",
    ),
    (
        "core_lambda1, core_lambda2_over_1",
        "Largest singular value of UltraMem's scoring core, and the second over it: near 0 the core is of rank 1.",
    ),
    ("output_std", "Standard deviation of what the layer adds to the residual stream."),
)


def terms(results: Results) -> Iterator:
    """Terms of every section and metrics of health.csv."""
    yield Facts(list(TERMS), "terms")
