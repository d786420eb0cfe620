"""The layer that every memory architecture shares: query, keys, value table, addresses, pooling, output.

    q = norm(W_q conv(x)),  S_row = K_row q_row,  S_col = K_col q_col      one score per axis, rank, head and key
    picks = top-m cells of the n' x n' grid that the selector spans from S_row and S_col (pkm.py: sum; tucker.py: TDQKR)
    o = W [sum over the picks of expansion block e of weight * V[row]] for e = 1..E, concatenated      (IVE: pool, project)

Above 300 lines, because one pass through the layer reads from top to bottom.

P1 sections 3.1-3.4, P2 section 3. Scores are computed in float32 under autocast too, while projections may be bfloat16; a
half-precision model's scores are products of half-precision queries and keys, summed in float32.

B batch, T tokens (batch x time, flattened; time alone in BTD), D d_model, H memory heads (1 in a shared query), c axis
(row, column), n keys per axis, r rank, g vectors of width Q = d_key that a query or key owns, K width that one rank
scores (Q, or Q/r where ranks split it), m top_m, h cores, M = H m picks per token, E blocks, C d_value, N table rows.
"""

from __future__ import annotations

from functools import cache as remember
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from models.decode import DecodeState
from models.linear import Linear, Norm
from models.memory_config import MemoryConfig
from models.memory_init import initialise
from models.value_table import Table

if TYPE_CHECKING:
    from typing import Any

    from models.pkm import ProductKeys
    from models.tucker import Tucker


class CausalConv(nn.Module):
    """Depthwise convolution over the last `taps` positions; starts as the identity. A decode state keeps its inputs."""

    width_free = ("weight_kD",)

    def __init__(self, width: int, taps: int):
        super().__init__()
        self.weight_kD = nn.Parameter(torch.zeros(taps, width))
        self.past_shape = (1, 1, width)

    def forward(self, x_BTD: Tensor, cache: DecodeState | None = None) -> Tensor:
        T, k = x_BTD.shape[1], len(self.weight_kD)
        if cache is not None:
            x_BTD = cache.append(self, x_BTD[:, None])[0][:, 0, -(T + k - 1) :]
        x_BSD = F.pad(x_BTD, (0, 0, T + k - 1 - x_BTD.shape[1], 0))
        return sum(x_BSD[:, i : i + T] * weight_D for i, weight_D in enumerate(self.weight_kD))


@remember
def permutation(n: int, seed: int | None = None) -> Tensor:
    """A shuffle of n logical addresses. Without a seed the fixed one, the same for every layer and run."""
    generator = torch.Generator("cpu").manual_seed(n if seed is None else seed)
    return torch.randperm(n, generator=generator, dtype=torch.int32, device="cpu")


def jumps(n_rows: int, seed: int) -> Tensor:
    """By how many of n_rows each position of the context moves on; from 16384 on they repeat."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(n_rows, (16384,), generator=generator, dtype=torch.int32, device="cpu")


class Memory(nn.Module):
    """One memory layer. Subclasses change what pre-values are multiplied with, the output, or add losses.

    Args:
        selector: picks cells from axis scores (`ProductKeys` or `Tucker`).
        memory: number of this memory layer. table: a table to share; None makes and initialises one.
    """

    def __init__(
        self,
        cfg: MemoryConfig,
        selector: ProductKeys | Tucker,
        d_model: int,
        n_layers: int,
        memory: int,
        table: Table | None,
    ):
        super().__init__()
        L, H, Q = len(cfg.spans(n_layers)), cfg.n_mem_heads, cfg.d_key
        self.cfg, self.d_model, self.n_layers = cfg, d_model, n_layers
        self.window, self.axis = cfg.reach(memory, L), cfg.axis(L)
        self.rank_width = Q // cfg.rank if cfg.choice("rank_query") == "split" else Q
        self.conv = CausalConv(d_model, cfg.query_conv) if cfg.query_conv > 1 else None
        self.query_shape = (1 if cfg.share_query == "heads" else H, 2, cfg.query_groups, Q)
        self.query = Linear(d_model, self.query_shape[0] * 2 * cfg.query_groups * Q)
        self.keys_cHngQ = nn.Parameter(torch.empty(2, H, self.axis, cfg.key_groups, Q))
        self.query_norm = Norm(Q, cfg.choice("qk_norm"))
        self.key_norm = Norm(Q, cfg.choice("qk_norm"))
        self.selector = selector
        width = cfg.value_width(d_model)
        owner = table is None
        if owner:
            self.table = Table(self.window.rows, width, cfg.pre_width(d_model))
        else:
            # Registered once, by the layer that made it, so that a checkpoint holds it once.
            object.__setattr__(self, "table", table)
        self.output = Linear(cfg.blocks * width, d_model) if cfg.projects else None
        self.folded: nn.Module | None = None
        self.add_parts(d_model)
        self.kept = None
        self.add_addresses(memory)
        if not self.keys_cHngQ.is_meta:
            initialise(self, fill_table=owner)
        for parameter in {"frozen": self.table, "frozen-layer": self}.get(cfg.placebo, nn.Module()).parameters():
            parameter.requires_grad_(False)
        if self.output is not None:
            self.output.requires_grad_(True)

    if TYPE_CHECKING:
        kept: Any  # keys and what they were made of, or None
        shuffle: Tensor | None
        jumps: Tensor | None
        table: Table

    def add_parts(self, d_model: int) -> None:
        """Linear maps of a subclass."""

    def add_addresses(self, memory: int) -> None:
        """The shuffle of addresses and the jumps of positions, where there are any.

        Those of a placebo are drawn from the run's seed and the layer's number beside the random stream, so that weights
        start as they do without, and are part of a checkpoint; the fixed shuffle is not.
        """
        cells, seed = self.axis**2, (1000 * torch.initial_seed() + memory) % 2**63
        drawn, fixed = self.cfg.placebo == "shuffled", self.cfg.expansion > 1
        shuffle = permutation(cells, seed) if drawn else permutation(cells) if fixed else None
        self.register_buffer("shuffle", shuffle, persistent=drawn)
        scattered = self.cfg.placebo == "scattered"
        self.register_buffer("jumps", jumps(self.window.side**2, seed) if scattered else None)

    @torch.no_grad()
    def start_at_base_width(self, width_scale: float) -> None:
        """Product keys' values, N(0, 1/D) without a projection behind them, start as at the base width, as embeddings do."""
        owner = "table" in self._modules
        if owner and self.cfg.choice("init") == "lample" and width_scale != 1:
            for name in self.table.value_names:
                getattr(self.table, name).mul_(width_scale**-0.5)

    def extra_linears(self) -> tuple[nn.Linear | None, ...]:
        return ()

    def by_rank(self, x_XgQ: Tensor) -> Tensor:
        return x_XgQ.unflatten(-1, (-1, self.rank_width)).flatten(-3, -2)

    def train(self, mode: bool = True) -> Memory:
        self.kept = None
        return super().train(mode)

    def scored_keys(self) -> Tensor:
        """Normalised keys (c, H, r, n, K), in float32 or wider but for a half-precision model's.

        Without gradients in eval mode they are kept from call to call, until a tensor they come from changes: they are a
        third of an UltraMem layer's time when one token is decoded on a CPU.
        """
        sources = (self.keys_cHngQ, *self.key_norm.parameters())
        stamp = [(tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in sources]
        keep = not (self.training or torch.is_grad_enabled())
        if keep and self.kept is not None and self.kept[0] == stamp:
            return self.kept[1]
        keys_cHrnK = self.by_rank(self.key_norm(self.keys_cHngQ)).transpose(3, 2)
        self.kept = (stamp, keys_cHrnK.contiguous()) if keep else None
        return self.kept[1] if keep else keys_cHrnK

    def scores(self, x_BTD: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        """S_row and S_col, each (T, H, n, r)."""
        if self.conv is not None:
            x_BTD = self.conv(x_BTD, cache)
        q_THcgQ = self.query(x_BTD).view(-1, *self.query_shape)
        if self.cfg.choice("rank_query") == "release":
            # The released V2 takes ranks 0 and 1 of the row query for row and column query and leaves the rest unread.
            q_THcgQ = q_THcgQ[:, :, 0, :2, None]
        with torch.autocast(x_BTD.device.type, enabled=False):
            keys_cHrnK = self.scored_keys()
            q_THcrK = self.by_rank(self.query_norm(q_THcgQ.to(keys_cHrnK.dtype)))
            # Two products, not one over both axes: splitting its result would cost a copy of all scores in backward.
            q_THcrK = q_THcrK.expand(-1, self.cfg.n_mem_heads, -1, -1, -1)
            row_THnr, col_THnr = map(kernels.key_scores, q_THcrK.unbind(2), keys_cHrnK)
        return row_THnr, col_THnr

    def select(self, row_THnr: Tensor, col_THnr: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the picks per core (T, H, m, h), best first in each head, and their logical addresses (T, H, m)."""
        with torch.autocast(row_THnr.device.type, enabled=False):
            return self.selector(row_THnr, col_THnr, self.cfg.top_m)

    def weigh(self, score_THmh: Tensor) -> Tensor:
        """Weights of all heads' picks (T, M, h)."""
        if self.cfg.score_fn == "softmax":
            score_THmh = score_THmh.softmax(dim=2)
        return score_THmh.flatten(1, 2)

    def jump(self, x_BTD: Tensor, cache: DecodeState | None = None) -> Tensor | None:
        """Rows (B T, 1) by which the picks of each token move on in the placebo "scattered"."""
        if self.jumps is None:
            return None
        first, (B, T, _) = cache.length if cache is not None else 0, x_BTD.shape
        place_T = torch.arange(first, first + T, device=self.jumps.device) % len(self.jumps)
        return self.jumps[place_T].long().repeat(B)[:, None]

    def address(self, index_TM: Tensor, jump_T1: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Physical row and expansion block of logical addresses (P1 section 3.4; the release's order: shuffle, then cut)."""
        if self.shuffle is not None:
            index_TM = self.shuffle[index_TM].long()
        view, block_TM = self.window.side**2, None
        if self.cfg.blocks > 1:
            block_TM = index_TM // view
        row_TM = index_TM % view if self.cfg.expansion > 1 else index_TM
        if jump_T1 is not None:
            row_TM = (row_TM + jump_T1) % view
        if self.window.offset or self.window.rows < view:
            row_TM = (row_TM + self.window.offset) % self.window.rows
        return row_TM, block_TM

    def gate(self, weight_TMh: Tensor, row_TM: Tensor, x_TD: Tensor) -> Tensor:
        """Weights of the picks times f(<P[row], x>) where there are pre-values P; f is the config's `activation`."""
        if self.table.pre_values_NP is None:
            return weight_TMh
        hidden_TM = kernels.row_dot(*self.table.read("pre_values_NP", row_TM), self.before_pre_values(x_TD))
        if self.cfg.activation == "gelu":
            hidden_TM = F.gelu(hidden_TM)
        return weight_TMh * hidden_TM.unsqueeze(-1)

    def before_pre_values(self, x_TD: Tensor) -> Tensor:
        return x_TD

    def project(self, pooled_TX: Tensor, x_TD: Tensor) -> Tensor:
        return pooled_TX if self.output is None else self.output(pooled_TX)

    def loss(self, row_THnr: Tensor, col_THnr: Tensor, index_THm: Tensor) -> Tensor | float:
        """Weighted auxiliary loss; added in training only."""
        return self.selector.penalty()

    def forward(self, x_BTD: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        x_TD = x_BTD.flatten(0, 1)
        row_THnr, col_THnr = self.scores(x_BTD, cache)
        score_THmh, index_THm = self.select(row_THnr, col_THnr)
        row_TM, block_TM = self.address(index_THm.flatten(1), self.jump(x_BTD, cache))
        weight_TMh = self.gate(self.weigh(score_THmh), row_TM, x_TD)
        if self.folded is not None:
            y_TD = self.folded(row_TM, block_TM, weight_TMh)
        else:
            pooled_TEC = kernels.weighted_lookup(*self.table.read("values_NC", row_TM), weight_TMh, block_TM, self.cfg.blocks)
            y_TD = self.project(pooled_TEC.flatten(1), x_TD)
        aux = x_BTD.new_zeros(())
        if self.training:
            aux = aux + self.loss(row_THnr, col_THnr, index_THm)
        return y_TD.view_as(x_BTD), aux

    @torch.no_grad()
    def health(self, x_BTD: Tensor) -> dict[str, float]:
        """State of the layer on tokens x.

        Returns:
            Share of its window's values used, the most that so few picks could use, KL of their use from uniform (nats),
            mean top-1 and mean selected score (what multiplies values), output standard deviation, singular values of the
            core, and recall@m of brute force over the whole grid and over the quadrant that the filter searches (on the
            first tokens).
        """
        row_THnr, col_THnr = self.scores(x_BTD)
        score_THmh, index_THm = self.select(row_THnr, col_THnr)
        row_TM, _ = self.address(index_THm.flatten(1), self.jump(x_BTD))
        use_N = torch.bincount(row_TM.flatten(), minlength=self.window.rows).to(torch.float64)
        share_N, reach = use_N / use_N.sum(), min(self.window.side**2, self.window.rows)
        weight_THmh = self.weigh(score_THmh).view_as(score_THmh)
        sample = recall_tokens(self.axis)
        grid, searched = recall(self.selector, row_THnr[:sample], col_THnr[:sample], index_THm[:sample])
        return {
            "used_share": (use_N > 0).sum().item() / reach,
            "used_share_cap": min(1.0, row_TM.numel() / reach),
            "kl_uniform": torch.special.xlogy(share_N, share_N * reach).sum().item(),
            "top1_score": weight_THmh[:, :, 0].mean().item(),
            "mean_score": weight_THmh.mean().item(),
            "output_std": self(x_BTD)[0].float().std().item(),
            "recall_grid": grid,
            "recall_quadrant": searched,
            **self.selector.spectrum(),
        }


def recall_tokens(n_keys: int) -> int:
    """Tokens whose recall `health` measures in a layer of n_keys keys per axis: brute force takes n_keys**2 scores each."""
    return max(1, min(64, 2**24 // n_keys**2))


def recall(selector: ProductKeys | Tucker, row_THnr: Tensor, col_THnr: Tensor, index_THm: Tensor) -> tuple[float, float]:
    """Share of the brute-force top-m that was picked: of the whole grid, and of the quadrant that the selector searches."""
    m = index_THm.shape[-1]
    score_THnn, searched_THnn = selector.grid(row_THnr, col_THnr)
    found = []
    for cells_THnn in (torch.ones_like(searched_THnn), searched_THnn):
        best_THm, at_THm = score_THnn.masked_fill(~cells_THnn, -torch.inf).flatten(-2).topk(m)
        hit_THm = (at_THm[..., None] == index_THm[..., None, :]).any(-1)
        exists_THm = best_THm > -torch.inf
        found.append((hit_THm & exists_THm).sum().item() / max(exists_THm.sum().item(), 1))
    return found[0], found[1]
