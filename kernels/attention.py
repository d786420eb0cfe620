"""Causal attention: torch's fused kernel, or plain matrix products where those are faster.

On a CPU in bfloat16 with short sequences torch's flash kernel is 2 to 3 times slower, forward and backward, than two batched
matrix products around a softmax whose scores fit into the cache; elsewhere it is the better one.

B batch, H heads, T positions, K width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_PLAIN = 512  # positions; longer score matrices leave the cache


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, each position over itself and those before it. Returns (B, H, T, K).

    Takes part in autocast as torch's does. Differentiable in all three.
    """
    kind, T = q_BHTK.device.type, q_BHTK.shape[2]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q_BHTK.dtype
    if kind != "cpu" or dtype != torch.bfloat16 or T > LONGEST_PLAIN:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    with torch.autocast(kind, enabled=False):
        q, k, v = (x.to(dtype).flatten(0, 1) for x in (q_BHTK, k_BHTK, v_BHTK))
        future_TT = torch.full((T, T), float("-inf"), dtype=dtype).triu(1)
        scores = torch.baddbmm(future_TT, q, k.mT, alpha=q.shape[-1] ** -0.5)
        return (scores.softmax(-1) @ v).view_as(q_BHTK)
