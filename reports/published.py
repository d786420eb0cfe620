"""The papers' losses as points, from evals/claims/reference: P1 table 1 (validation loss), P2 tables 1 and 3 (evaluation loss).

Each paper has its own data and tokenizer, and P1 publishes no tokens a run: the points share our axes, not our level.
"""

import re
from collections.abc import Iterable
from functools import cache

import pandas as pd

from evals.claims.evidence.counted import REFERENCE

FAMILIES = {
    "Dense": "dense",
    "MoE": "moe2",
    "SeedMoE": "moe8",
    "OLMoE": "moe8",
    "UltraMem": "ultramem",
    "UltraMemV2": "ultramem_v2",
}
FAMILIES |= {"V2": "ultramem_v2"}
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@cache
def table(name: str) -> pd.DataFrame:
    """A file of evals/claims/reference as it stands; a missing condition is ""."""
    return pd.read_csv(REFERENCE / f"{name}.csv", dtype={"value": str}).fillna("")


def scores(name: str, metrics: Iterable[str] = ()) -> pd.DataFrame:
    """One row a model, one column a metric (all, or those of `metrics` that the file has), cells as printed."""
    frame = table(name)
    frame = frame.assign(model=frame["row"] + frame["condition"].map(lambda words: f", {words}" if words else ""))
    order = list(dict.fromkeys(frame["metric"]))
    wide = frame.pivot(index="model", columns="metric", values="value").reindex(list(dict.fromkeys(frame["model"])))
    return wide[[metric for metric in metrics or order if metric in order]].dropna(how="all").fillna("–")


@cache
def losses() -> pd.DataFrame:
    """Columns arch, model, active_params, params, tokens (NaN where not published) and loss (nats/token)."""
    wide = table("ultramem_main").pivot(index="row", columns="metric", values="value")[
        ["params", "flops_per_token", "val_loss"]
    ]
    points = []
    for model, row in wide.dropna().astype(float).iterrows():
        points.append((model, row["flops_per_token"] * 1e9 / 2, row["params"] * 1e9, float("nan"), row["val_loss"]))
    for name in ("ultramem_v2_main", "ultramem_v2_open"):
        for row in table(name).itertuples():
            sizes = re.search(r"-([\d.]+)([MB])/([\d.]+)([MB])", row.row)
            tokens = re.fullmatch(r"([\d.]+)([BT])( PT)?", row.condition)
            if row.metric == "eval_loss" and sizes and tokens:
                active, params = float(sizes[1]) * UNITS[sizes[2]], float(sizes[3]) * UNITS[sizes[4]]
                points.append((row.row, active, params, float(tokens[1]) * UNITS[tokens[2]], float(row.value)))
    frame = pd.DataFrame(points, columns=["model", "active_params", "params", "tokens", "loss"])
    return frame.assign(arch=frame["model"].str.partition("-")[0].map(lambda family: FAMILIES.get(family, family)))
