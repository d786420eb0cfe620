"""Mixture of experts: token-choice top-k, dropless.

P2 equations 1-2: o = sum over the top-k experts i of p_i * expert_i(x), p = softmax(W_r x), weights not renormalised.
P1's 2-expert baseline is top-2 of N half-width GELU experts; P2's 8-expert baseline is OLMoE's top-8 of 64 SwiGLU ones.
P1 gives neither router nor balance loss (GAP): both baselines use OLMoE's, load balance 0.01 and router z-loss 0.001, each
the mean over the model's MoE layers as in MegaBlocks and OLMo-core, so that their weight does not grow with depth.

Scale. As published, the sum of k outputs weighted by probabilities starts far below the FFN it replaces: with weights that
sum to 1 its standard deviation is 1/k of that of a dense FFN of the same active width, with a softmax over all experts
less still. `scale` "variance" mends that by a constant measured at initialisation (DeepSeek-V2 and V3 have such a constant,
`routed_scaling_factor`, 16 and 2.5).

T tokens, D d_model, E n_experts, k top_k, S = T*k routed tokens sorted by expert, F d_expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

import kernels
from models.balance import BatchShare
from models.cost import Cost, Part, dense
from models.decode import DecodeState
from models.draws import N_DRAWS, noise
from models.feed_forward import FeedForward, feed_forward_cost
from models.slot import ArchConfig


@dataclass(frozen=True, kw_only=True)
class MoEConfig(ArchConfig):
    """A mixture of experts in every block.

    Args:
        n_experts, top_k, d_expert: experts, experts per token, inner width of each.
        glu: SwiGLU experts (P2) or two-matrix GELU ones (P1).
        weights: of the chosen experts' outputs: "softmax" over all experts (P2, OLMoE; of many experts each then weighs
            little at first), or "renormalised" to sum to 1 over the chosen (Mixtral).
        scale: of the weighted sum: "published" leaves it as the sources have it; "variance" multiplies it by the constant
            that gives it, at initialisation, the output variance of a dense FFN of the same active width.
        d_shared: inner width of a shared expert that every token uses; 0 is none, as in both papers.
        load_balance: weight of n_experts * sum_e f_e p_e, which is 1 when perfectly balanced (Switch, Fedus et al. 2021;
            f counts routed tokens and sums to 1 over experts, so the value does not depend on top_k).
        router_z: weight of the mean squared log-sum-exp of the router's logits (ST-MoE, Zoph et al. 2022).
        router_init: standard deviation of the router in units of the backbone's. 0 starts at uniform probabilities
            and breaks ties by index, so it is refused.
        router_frozen: "no", or a control: "yes" keeps the router as initialised, which still sends like tokens to like
            experts (as hash layers do, Roller et al. 2021); "blind" lets it see noise besides, in place of the token, the
            same at every step for a place in the batch, so that no expert can learn a kind of token.

    Raises:
        ValueError: top_k exceeds n_experts, or router_init is not positive.
    """

    name: ClassVar[str] = "moe"
    width_knob: ClassVar[str] = "d_expert"
    size_knob: ClassVar[str] = "n_experts"
    n_experts: int
    top_k: int
    d_expert: int
    glu: bool = True
    weights: Literal["softmax", "renormalised"] = "softmax"
    scale: Literal["published", "variance"] = "published"
    d_shared: int = 0
    load_balance: float = 0.01
    router_z: float = 0.001
    router_init: float = 1.0
    router_frozen: Literal["no", "yes", "blind"] = "no"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_k <= self.n_experts:
            raise ValueError(f"top_k {self.top_k} must lie between 1 and n_experts {self.n_experts}")
        if self.router_init <= 0:
            raise ValueError(f"router_init {self.router_init} must be positive")

    @property
    def smallest_size(self) -> int:
        return self.top_k + 1

    def feed_forward(self, d_model: int, layer: int, n_layers: int) -> nn.Module:
        return MoE(d_model, self, n_layers)

    def selection_flops(self, d_model: int, n_layers: int) -> int:
        """A comparison an expert for each of the k chosen."""
        return n_layers * self.top_k * self.n_experts

    def cost(self, d_model: int, n_layers: int) -> Cost:
        matrices = 3 if self.glu else 2
        layer = Cost(
            (
                dense("router", "router", d_model * self.n_experts),
                Part("experts", "table", self.n_experts, matrices * d_model * self.d_expert, self.top_k),
            )
        )
        if self.d_shared:
            layer += feed_forward_cost(d_model, self.d_shared, self.glu)
        return layer * n_layers


class MoE(nn.Module):
    """Routes every token to its k experts and sums up what they make of it.

    Args:
        n_layers: MoE layers of the model, over which the auxiliary losses are a mean.
    """

    def __init__(self, d_model: int, cfg: MoEConfig, n_layers: int = 1):
        super().__init__()
        self.cfg, self.n_layers = cfg, n_layers
        self.batch_share = BatchShare()
        self.router = nn.Linear(d_model, cfg.n_experts, bias=False)
        self.router.weight.requires_grad_(cfg.router_frozen == "no")
        self.up_EDF = nn.Parameter(torch.empty(cfg.n_experts, d_model, (2 if cfg.glu else 1) * cfg.d_expert))
        self.down_EFD = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_expert, d_model))
        self.shared = FeedForward(d_model, cfg.d_shared, cfg.glu) if cfg.d_shared else None
        self.register_buffer("scale", torch.ones(()))

    if TYPE_CHECKING:
        scale: Tensor

    def init_weights(self, std: float, out_std: float) -> None:
        nn.init.normal_(self.router.weight, std=std * self.cfg.router_init)
        nn.init.normal_(self.up_EDF, std=std)
        nn.init.normal_(self.down_EFD, std=out_std)
        if self.shared is not None:
            self.shared.init_weights(std, out_std)
        if self.cfg.scale == "variance" and not self.router.weight.is_meta:
            self.scale.fill_(self.matching_scale())

    def matching_scale(self) -> float:
        """sqrt(k / E[sum of squared weights]) over N(0, 1) tokens, what a norm hands the layer, through its own router.

        Experts are independent at initialisation: the sum's variance is one expert's times the sum of squared weights, and
        that of a dense FFN of the same active width is k times one expert's.
        """
        _, weight_Tk, _ = self.route(noise(N_DRAWS, self.router.in_features).to(self.router.weight.device))
        return (self.cfg.top_k / weight_Tk.square().sum(-1).mean().item()) ** 0.5

    def lay_out_for_decoding(self) -> None:
        """On a CPU: every output's weights together in memory, which few rows want. Shapes and values stay."""
        if self.up_EDF.device.type == "cpu":
            for weight in (self.up_EDF, self.down_EFD):
                weight.data = weight.data.mT.contiguous().mT

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits (T, E), weights (T, k) and indices (T, k) of the chosen experts; float32."""
        if self.cfg.router_frozen == "blind":
            x_TD = noise(*x_TD.shape).to(x_TD.device)
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = kernels.linear(x_TD.float(), self.router.weight.float())
        expert_Tk = kernels.topm(logits_TE, self.cfg.top_k)
        prob_Tk = logits_TE.softmax(-1).gather(-1, expert_Tk)
        if self.cfg.weights == "renormalised":
            prob_Tk = prob_Tk / prob_Tk.sum(-1, keepdim=True)
        return logits_TE, prob_Tk, expert_Tk

    def aux_loss(self, logits_TE: Tensor, expert_Tk: Tensor) -> Tensor:
        """This layer's share of the mean over layers."""
        expert_S = expert_Tk.flatten()
        # Not bincount, which makes a GPU's host wait: a CUDA graph could not hold the step.
        counts_E = expert_S.new_zeros(self.cfg.n_experts).scatter_add_(0, expert_S, torch.ones_like(expert_S))
        balance = self.cfg.n_experts * (self.batch_share(counts_E) * logits_TE.softmax(-1).mean(0)).sum()
        loss = self.cfg.load_balance * balance + self.cfg.router_z * logits_TE.logsumexp(-1).square().mean()
        return loss / self.n_layers

    def forward(self, x_BTD: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        x_TD = x_BTD.flatten(0, -2)
        logits_TE, prob_Tk, expert_Tk = self.route(x_TD)
        y_TD = kernels.experts(x_TD, self.up_EDF, self.down_EFD, expert_Tk, prob_Tk * self.scale, self.cfg.glu)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)[0]
        aux = self.aux_loss(logits_TE, expert_Tk) if self.training else x_BTD.new_zeros(())
        return y_TD.view_as(x_BTD), aux

    @torch.no_grad()
    def health(self, x_BTD: Tensor) -> dict[str, float]:
        """Share of experts used, KL of their use from uniform (nats), mean top-1 probability."""
        _, prob_Tk, expert_Tk = self.route(x_BTD.flatten(0, -2))
        use_E = torch.bincount(expert_Tk.flatten(), minlength=self.cfg.n_experts).float()
        share_E = use_E / use_E.sum()
        kl = torch.special.xlogy(share_E, share_E * self.cfg.n_experts).sum()
        return {
            "used_share": (use_E > 0).float().mean().item(),
            "kl_uniform": kl.item(),
            "top1_score": prob_Tk[:, 0].mean().item(),
            "mean_score": prob_Tk.mean().item(),
            "output_std": self(x_BTD)[0].float().std().item(),
        }
