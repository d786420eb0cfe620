"""Value tables in parts, one on each worker, and what a memory layer sends to read them (P1's appendix on training).

`ByNumber`: a worker holds 1/P of the rows whole. A token asks each owner for the rows that it picked there, one request for
each expansion block; the owner weighs and sums them and sends back one row a request. Pre-values lie beside their values, so
what they meet goes along. `ByDimension`: a worker holds 1/P of the columns of every row, of each core's slice alike. Every
worker's addresses and weights go to all, each sums its columns for all tokens and sends back every token's slice; products
with pre-values are summed up over workers before. `evals/access/partition.py` counts the bytes of both.

T tokens of this worker, M picks per token over all heads, h cores, E expansion blocks, C value width, V pre-value width, N
table rows, P workers, S = T M picks, R requests, K the most picks of a request.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from evals.records.errors import UserError
from models.memory import Memory
from models.value_table import Table
from workflows.parallel.exchange import all_gather, all_to_all, gathered, narrowed, summed, swapped


class Spread(nn.Module):
    """Stands where a folded table would: looks rows up in a table that lies in parts, and projects what comes back.

    Args:
        memory: the layer, whose table's parameters are this worker's part already. rows: N of the whole table.
        dtype: of weights and values on their way; None sends them as they are.
        count: is told this worker's rows of every look-up in training.
    """

    def __init__(self, memory: Memory, rows: int, dtype: torch.dtype | None, count: Callable[[Table, Tensor], None]):
        super().__init__()
        object.__setattr__(self, "memory", memory)  # the layer owns this module, not this module the layer
        self.rows, self.dtype, self.count = rows, dtype, count
        self.workers, self.blocks = dist.get_world_size(), memory.cfg.blocks
        self.input_TD: Tensor | None = None
        memory.gate = self.gate  # type: ignore[method-assign]  # weights meet pre-values where these lie
        memory.folded = self

    def gate(self, weight_TMh: Tensor, row_TM: Tensor, x_TD: Tensor) -> Tensor:
        self.input_TD = x_TD
        return weight_TMh

    def forward(self, row_TM: Tensor, block_TM: Tensor | None, weight_TMh: Tensor) -> Tensor:
        x_TD, self.input_TD = self.input_TD, None
        assert x_TD is not None
        met_TV = None if self.memory.table.pre_values_NP is None else self.memory.before_pre_values(x_TD)
        block_TM = torch.zeros_like(row_TM) if block_TM is None else block_TM
        pooled_TEC = self.pool(row_TM, block_TM, weight_TMh, met_TV)
        return self.memory.project(pooled_TEC.flatten(1), x_TD)

    def pool(self, row_TM: Tensor, block_TM: Tensor, weight_TMh: Tensor, met_TV: Tensor | None) -> Tensor:
        """Weighted sums of the picks (T, E, C)."""
        raise NotImplementedError

    def on_the_way(self, x: Tensor) -> Tensor:
        return narrowed(x, self.dtype)

    def arrived(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.float()

    def active(self, hidden: Tensor) -> Tensor:
        return F.gelu(hidden) if self.memory.cfg.activation == "gelu" else hidden


class ByNumber(Spread):
    """Worker p holds rows p ceil(N/P) and on."""

    def pool(self, row_TM: Tensor, block_TM: Tensor, weight_TMh: Tensor, met_TV: Tensor | None) -> Tensor:
        T, E, P = len(row_TM), self.blocks, self.workers
        each, table = -(-self.rows // P), self.memory.table
        token_T1 = torch.arange(T, device=row_TM.device)[:, None]
        owner_TM = row_TM // each
        key_S, order_S = ((owner_TM * T + token_T1) * E + block_TM).flatten().sort(stable=True)
        request_R, count_R = key_S.unique_consecutive(return_counts=True)
        sent_P2 = torch.stack([owner_TM.flatten().bincount(minlength=P), (request_R // (T * E)).bincount(minlength=P)], 1)
        got_P2 = all_to_all(sent_P2, [1] * P, [1] * P)
        (picks, requests), (picks_here, requests_here) = sent_P2.T.tolist(), got_P2.T.tolist()
        row_S = all_to_all((row_TM.flatten()[order_S] % each).to(torch.int32), picks, picks_here).long()
        # As two bytes each: neither gloo nor NCCL knows 16-bit integers.
        count_R2 = all_to_all(count_R.to(torch.int16)[:, None].view(torch.uint8), requests, requests_here)
        count_R = count_R2.view(torch.int16)[:, 0].long()
        weight_Sh = self.arrived(swapped(self.on_the_way(weight_TMh.flatten(0, 1)[order_S]), picks, picks_here))
        place_R = request_R % (T * E)
        met_RV = None
        if met_TV is not None:
            met_RV = swapped(self.on_the_way(met_TV[place_R // E]), requests, requests_here)
        if len(count_R):
            sum_RC = self.serve(table, row_S, count_R, weight_Sh, met_RV)
        else:  # nobody asks here; the exchange has to know this worker all the same when gradients come
            sum_RC = weight_Sh[:, :1].expand(-1, table.values_NC.shape[1])
            sum_RC = sum_RC if met_RV is None else sum_RC + met_RV[:, :1]
        sum_RC = self.arrived(swapped(self.on_the_way(sum_RC), requests_here, requests))
        return sum_RC.new_zeros(T * E, sum_RC.shape[1]).index_add(0, place_R, sum_RC).view(T, E, -1)

    def serve(self, table: Table, row_S: Tensor, count_R: Tensor, weight_Sh: Tensor, met_RV: Tensor | None) -> Tensor:
        """Sums (R, C) for requests of count_R picks each, which stand one after the other."""
        first_R1, place_K = (count_R.cumsum(0) - count_R)[:, None], torch.arange(int(count_R.max()), device=row_S.device)
        # A shorter request is filled up with its own last pick at weight 0: rows that nobody picked stay untouched.
        index_RK = first_R1 + torch.minimum(place_K, count_R[:, None] - 1)
        row_RK, weight_RKh = row_S[index_RK], weight_Sh[index_RK] * (place_K < count_R[:, None])[..., None]
        self.count(table, row_S)
        if met_RV is not None:
            hidden_RK = kernels.row_dot(*table.read("pre_values_NP", row_RK), met_RV)
            weight_RKh = weight_RKh * self.active(hidden_RK).unsqueeze(-1)
        return kernels.weighted_lookup(*table.read("values_NC", row_RK), weight_RKh)[:, 0]


class ByDimension(Spread):
    """Worker p holds the p-th of P equal parts of each core's slice of every value, and of every pre-value."""

    def pool(self, row_TM: Tensor, block_TM: Tensor, weight_TMh: Tensor, met_TV: Tensor | None) -> Tensor:
        T, E, P, table = len(row_TM), self.blocks, self.workers, self.memory.table
        dtype = torch.int32 if self.rows * E < 2**31 else torch.int64
        address_UM = all_gather((row_TM + block_TM * self.rows).to(dtype)).long()  # U = P T
        row_UM, block_UM = address_UM % self.rows, address_UM // self.rows
        self.count(table, row_UM)
        even = [T] * P
        if met_TV is not None:
            met_UV = self.on_the_way(met_TV.unflatten(1, (P, -1)).transpose(0, 1).flatten(0, 1))
            met_UV = swapped(met_UV, even, even)
            hidden_TM = summed(kernels.row_dot(*table.read("pre_values_NP", row_UM), met_UV))
            weight_TMh = weight_TMh * self.active(hidden_TM).unsqueeze(-1)
        weight_UMh = self.arrived(gathered(self.on_the_way(weight_TMh)))
        sum_UEc = kernels.weighted_lookup(*table.read("values_NC", row_UM), weight_UMh, block_UM if E > 1 else None, E)
        sum_UEc = self.arrived(swapped(self.on_the_way(sum_UEc), even, even))
        cores = weight_TMh.shape[-1]
        sum_PTEhc = sum_UEc.unflatten(-1, (cores, -1)).unflatten(0, (P, T))
        return sum_PTEhc.permute(1, 2, 3, 0, 4).reshape(T, E, -1)


WAYS: dict[str, type[Spread]] = {"number": ByNumber, "dimension": ByDimension}


def split_rows(table_NC: Tensor, rank: int, workers: int) -> Tensor:
    """The rows that `rank` holds by number, a copy; none where there are fewer rows than workers."""
    each = -(-len(table_NC) // workers)
    return table_NC[rank * each : (rank + 1) * each].clone()


def split_columns(table_NC: Tensor, cores: int, rank: int, workers: int, where: str) -> Tensor:
    """The columns that `rank` holds by dimension, a copy.

    Raises:
        UserError: a core's slice does not split evenly over the workers.
    """
    width = table_NC.shape[1] // cores
    if width % workers:
        raise UserError(
            f"{where}: {width} columns{f' of each of {cores} cores' if cores > 1 else ''} do not split evenly over {workers} "
            f"workers; set parallel.values to number, or a number of workers that divides {width}"
        )
    each = width // workers
    return table_NC.unflatten(1, (cores, width))[:, :, rank * each : (rank + 1) * each].flatten(1).clone()
