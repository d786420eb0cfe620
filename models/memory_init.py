"""How a memory layer starts: the four initialisations that papers and code use, and the Monte Carlo two of them need.

"lample"        Lample 2019 and P1's baseline: Xavier queries, keys U(+-1/sqrt(2 d_key)), values N(0, 1/D).
"code"          The release: tables N(0, 0.02^2), everything else by fan-in, query and key gains d_key^-0.33 (V2: -0.4).
"ultramem"      P1 appendix A: the mean selected score is 1 and the output variance 1/(2 L), as a GPT MLP's.
"ultramem_v2"   P2 section 3.5 and appendix A: linear maps N(0, 2/(5 D)), output variance that of the FFN beside it.

The last two need the mean of the selected scores. The papers take candidate scores as N(0, 1) and draw; a Tucker score is
a product of two of them weighed by a random core, narrow keys are not Gaussian at all, and neither mean is then 1. So the
layer itself draws: N(0, 1) tokens (what a norm hands it) through its own queries, keys and core, and its query gain (its
query map, without norm) is divided by what comes out. "Selected score" is what multiplies a value: with several cores
each core's own, so both papers' variance formulas hold as printed. They set the second moment of the scores to 1 and to
1 + s^2; here both use the measured one. GAP, chosen: the stds of maps the papers do not name are by fan-in; cores are
U(0, 1) everywhere, as in the release; gains under "lample" are the release's.

D d_model, L n_layers, Q d_key, C d_value, P d_pre_value, M picks per token, h cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import kernels
from models.draws import N_DRAWS, noise

if TYPE_CHECKING:
    from models.memory import Memory


@torch.no_grad()
def initialise(layer: Memory, fill_table: bool) -> None:
    """Fills every parameter of a `Memory`; a shared table is filled by the layer that made it."""
    cfg, D, style = layer.cfg, layer.d_model, layer.cfg.choice("init")
    Q, K, table = cfg.d_key, layer.rank_width, layer.table
    C, P = table.values_NC.shape[1], cfg.pre_width(D)
    linear_std = (2 / (5 * D)) ** 0.5
    if layer.conv is not None:
        layer.conv.weight_kD.zero_()[-1] = 1
    if style == "lample":
        nn.init.xavier_uniform_(layer.query.weight)
        nn.init.uniform_(layer.keys_cHngQ, -((2 * Q) ** -0.5), (2 * Q) ** -0.5)
    else:
        query_std = {"code": Q**-0.5, "ultramem": D**-0.5, "ultramem_v2": linear_std}[style]
        nn.init.normal_(layer.query.weight, std=query_std)
        nn.init.normal_(layer.keys_cHngQ, std=Q**-0.5)
    for linear in (layer.output, *layer.extra_linears()):
        if linear is not None:
            nn.init.normal_(linear.weight, std=linear_std if style == "ultramem_v2" else linear.in_features**-0.5)
    if layer.query_norm.weight is not None:
        measured = style in ("ultramem", "ultramem_v2")
        nn.init.constant_(layer.query_norm.weight, 1.0 if measured else Q**-cfg.gain_power)
        nn.init.constant_(layer.key_norm.weight, K**-0.5 if measured else Q**-cfg.gain_power)
    layer.selector.initialise()

    value_std, pre_std = {"lample": (D**-0.5, D**-0.5), "code": (0.02, 0.02)}.get(style, (None, None))
    if style == "ultramem":
        value_std = (cfg.blocks / (2 * cfg.n_mem_heads * cfg.top_m * layer.n_layers * calibrate(layer))) ** 0.5
        pre_std = P**-0.5 if P else None
    if style == "ultramem_v2":
        # P2 eq. 26: variance of the FFN = gain * variance(values) [* variance(pre-values)]; without an FFN, of one of 4 D.
        target = 0.064 * (cfg.d_ff or 4 * D) / D / (2 * layer.n_layers)
        gain = calibrate(layer) * cfg.n_mem_heads * cfg.top_m * (0.4 * C / D if layer.output is not None else 1.0)
        value_std = pre_std = (target / (gain * 0.4 * P)) ** 0.25 if P else (target / gain) ** 0.5
    if cfg.placebo == "one-row":
        value_std *= one_row_gain(layer)
    if fill_table:
        nn.init.normal_(table.values_NC, std=value_std)
        if P:
            nn.init.normal_(table.pre_values_NP, std=pre_std)  # type: ignore[arg-type]  # None only without P


def drawn_tokens(layer: Memory) -> Tensor:
    return noise(1, N_DRAWS, layer.d_model).to(layer.query.weight)


def one_row_gain(layer: Memory) -> float:
    """What the one row of a placebo is scaled by, so that its layer starts as loud as with a row for every pick.

    The variance of a block's output is that of a value times the sum of the squared weights of its picks where these read
    different rows, and times the square of their sum where all read the same.
    """
    score_THmh, index_THm = layer.select(*layer.scores(drawn_tokens(layer)))
    weight_TMh, (row_TM, block_TM) = layer.weigh(score_THmh), layer.address(index_THm.flatten(1))
    ones_1h = weight_TMh.new_ones(1, weight_TMh.shape[-1])
    sum_TEh = kernels.weighted_lookup(ones_1h, row_TM, weight_TMh, block_TM, layer.cfg.blocks)
    return (weight_TMh.square().sum() / sum_TEh.square().sum()).sqrt().item()


def calibrate(layer: Memory) -> float:
    """Scales the query so that the mean selected score is 1 (raw scores only), and returns their second moment."""
    weight, x_BTD = layer.query.weight, drawn_tokens(layer)

    def draw() -> Tensor:
        return layer.weigh(layer.select(*layer.scores(x_BTD))[0])

    mean = draw().mean()
    if layer.cfg.score_fn == "none" and mean > 0:  # picking nearly all cells leaves no positive mean to scale by
        scaled = weight if layer.query_norm.weight is None else layer.query_norm.weight
        scaled.mul_(mean ** -(1 / layer.selector.degree))
    return draw().square().mean().item()
