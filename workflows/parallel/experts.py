"""Expert parallelism: a worker holds 1/P of a mixture's experts; tokens go to their experts and the outputs come back.

T tokens of this worker, D d_model, E experts, k top_k, S = T k routed tokens, R of them that come here, e = ceil(E/P).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

import kernels
from models.decode import DecodeState
from models.moe import MoE
from workflows.parallel.exchange import all_to_all, narrowed, swapped


class SpreadExperts:
    """The forward pass of a mixture whose expert parameters are this worker's part already; replaces `moe.forward`.

    Args:
        dtype: of activations on their way; None sends them as they are.
    """

    def __init__(self, moe: MoE, dtype: torch.dtype | None):
        self.moe, self.dtype, self.workers = moe, dtype, dist.get_world_size()
        moe.forward = self.forward  # type: ignore[method-assign]

    def forward(self, x_BTD: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        moe, x_TD = self.moe, x_BTD.flatten(0, -2)
        logits_TE, prob_Tk, expert_Tk = moe.route(x_TD)
        y_TD = self.experts(x_TD, expert_Tk, prob_Tk * moe.scale)
        if moe.shared is not None:
            y_TD = y_TD + moe.shared(x_TD)[0]
        aux = moe.aux_loss(logits_TE, expert_Tk) if moe.training else x_BTD.new_zeros(())
        return y_TD.view_as(x_BTD), aux

    def experts(self, x_TD: Tensor, expert_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        """Weighted sum (T, D) of what every token's k experts make of it, wherever these lie."""
        moe, (T, k), P = self.moe, expert_Tk.shape, self.workers
        each = -(-moe.cfg.n_experts // P)
        expert_S = expert_Tk.flatten()
        order_S = expert_S.argsort(stable=True)
        counts_PE = expert_S.bincount(minlength=P * each).view(P, each)
        here_PE = all_to_all(counts_PE, [1] * P, [1] * P)
        send, receive = counts_PE.sum(1).tolist(), here_PE.sum(1).tolist()
        x_SD = x_TD[order_S // k]
        x_RD = swapped(narrowed(x_SD, self.dtype), send, receive)
        expert_R = torch.arange(each, device=x_TD.device).repeat(P).repeat_interleave(here_PE.flatten())
        y_RD = x_RD  # nothing came here
        if len(x_RD):
            ones_R1 = torch.ones(len(x_RD), 1, device=x_RD.device)
            y_RD = kernels.experts(x_RD, moe.up_EDF, moe.down_EFD, expert_R[:, None], ones_R1, moe.cfg.glu)
        y_SD = swapped(narrowed(y_RD, self.dtype), receive, send)
        place_S = torch.empty_like(order_S)
        place_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        return torch.einsum("tkd,tk->td", y_SD[place_S].view(T, k, -1), weight_Tk.to(y_SD.dtype))
