"""Causal self-attention of whole sequences: C++ for bfloat16 on a CPU, where torch's is slow for small models, or torch's.

B batch, H heads, T positions, K width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, each position over itself and those before it. Returns (B, H, T, K).

    Takes part in autocast as torch's does. Differentiable in all three.
    """
    from kernels import backend

    kind = q_BHTK.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q_BHTK.dtype
    if kind == "cpu" and dtype == torch.bfloat16 and backend("cpu") == "native":
        from kernels.cpu.attention import causal_attention as native

        return native(*(x.to(dtype) for x in (q_BHTK, k_BHTK, v_BHTK)))
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
