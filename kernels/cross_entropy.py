"""Tied output head and cross-entropy in cache-sized chunks of tokens; the full logits are never stored.

The loss is a mean over tokens, so both gradients of a chunk are known as soon as its softmax is: the forward pass
computes loss, d_hidden and d_weight together (three matrix products a chunk) and the backward pass only scales them.

Letters: S tokens, D model width, V vocabulary, K tokens of one chunk.
"""

import torch
from torch import Tensor

IGNORED = -100
LOGITS_BYTES = 4 << 20


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def _multiplied_as(dtype, device):
    """The type of the three products: float32 on a CPU that multiplies bfloat16 slower than that."""
    from kernels import backend

    if dtype == torch.bfloat16 and backend(device) == "native":
        from kernels.cpu.build import multiplies_bf16

        return dtype if multiplies_bf16() else torch.float32
    return dtype


def _softmax_step(logits_KV, target_K, scale, need_grad):
    """Loss of each token (0 where ignored) and, with need_grad, the gradient of scale * loss by the logits.

    The logits are overwritten. scale is a number or a scalar tensor.
    """
    from kernels import backend

    if logits_KV.dtype != torch.float64 and backend(logits_KV.device) == "native":
        from kernels.cpu.cross_entropy import softmax_step

        return softmax_step(logits_KV, target_K, scale, need_grad), logits_KV
    dtype, logits_KV = logits_KV.dtype, logits_KV.to(_wide(logits_KV.dtype))
    kept_K, target_K1 = target_K != IGNORED, target_K.clamp_min(0)[:, None]
    logsum_K = torch.logsumexp(logits_KV, -1)
    loss_K = (logsum_K - logits_KV.gather(1, target_K1)[:, 0]) * kept_K
    if need_grad:
        logits_KV = logits_KV.sub_(logsum_K[:, None]).exp_()
        logits_KV.scatter_add_(1, target_K1, -torch.ones_like(target_K1, dtype=logits_KV.dtype))
        logits_KV = logits_KV.mul_((kept_K * scale)[:, None]).to(dtype)
    return loss_K, logits_KV


def _run(hidden_SD, weight_VD, target_S, chunk, dtype, need_hidden, need_weight):
    """Loss per token, and the gradients of the mean loss by hidden and weight where needed."""
    wide, need_grad = _wide(dtype), need_hidden or need_weight
    scale = 1 / (target_S != IGNORED).sum().to(wide)
    low_SD, low_VD = (tensor.to(dtype).to(_multiplied_as(dtype, tensor.device)) for tensor in (hidden_SD, weight_VD))
    loss_S = hidden_SD.new_empty(len(target_S), dtype=wide)
    d_hidden_SD = torch.empty_like(low_SD) if need_hidden else None
    d_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if need_weight else None
    for start in range(0, len(target_S), chunk):
        part = slice(start, start + chunk)
        loss_S[part], d_logits_KV = _softmax_step(low_SD[part] @ low_VD.T, target_S[part], scale, need_grad)
        if need_hidden:
            torch.mm(d_logits_KV, low_VD, out=d_hidden_SD[part])
        if need_weight:
            d_weight_VD += d_logits_KV.T @ low_SD[part]
    return loss_S, scale, d_hidden_SD, d_weight_VD


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_SD, weight_VD, target_S, chunk, dtype):
        loss_S, scale, *grads = _run(hidden_SD, weight_VD, target_S, chunk, dtype, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(*grads)
        ctx.dtypes = hidden_SD.dtype, weight_VD.dtype
        return loss_S.sum() * scale

    @staticmethod
    def backward(ctx, d_loss):
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        d_hidden_SD, d_weight_VD = (None if grad is None else (grad * d_loss).to(dtype) for grad, dtype in pairs)
        return d_hidden_SD, d_weight_VD, None, None, None


def cross_entropy(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    target_S: Tensor,
    chunk: int | None = None,
    precision: str = "fp32",
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of logits = hidden @ weight.T without ever storing them.

    hidden_SD: (S, D); weight_VD: (V, D), the tied embedding; target_S: (S,) int64 in 0..V-1, -100 is ignored.
    chunk: tokens per chunk (default: 4 MiB of logits); precision: "fp32" computes in float32 or wider, "bf16" rounds
    hidden and weight to bfloat16, logits and their gradients too where the products are of bfloat16 (they are of float32
    where a CPU is faster so), and keeps the softmax in float32. Autocast changes nothing here.
    Returns the mean over tokens not ignored, in nats, differentiable in hidden and weight; with reduction="none" one
    number per token (0 where ignored), without gradient.
    Raises ValueError for an unknown precision or reduction, shapes that do not fit, or a target out of range.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"cross_entropy: precision {precision!r} must be fp32 or bf16")
    if reduction not in ("mean", "none"):
        raise ValueError(f"cross_entropy: reduction {reduction!r} must be mean or none")
    if hidden_SD.dim() != 2 or hidden_SD.shape[1] != weight_VD.shape[1] or target_S.shape != hidden_SD.shape[:1]:
        raise ValueError("cross_entropy: hidden, weight and target must be (S, D), (V, D) and (S,)")
    n_words = len(weight_VD)
    if target_S.device.type == "cpu" and bool(((target_S >= n_words) | (target_S < 0) & (target_S != IGNORED)).any()):
        raise ValueError(f"cross_entropy: targets must lie in 0..{n_words - 1} or be {IGNORED}")
    dtype = torch.bfloat16 if precision == "bf16" else _wide(hidden_SD.dtype)
    chunk = chunk or max(1, LOGITS_BYTES // (n_words * _multiplied_as(dtype, hidden_SD.device).itemsize))
    with torch.autocast(hidden_SD.device.type, enabled=False):
        if reduction == "mean":
            return _ChunkedCrossEntropy.apply(hidden_SD, weight_VD, target_S.contiguous(), chunk, dtype)
        with torch.no_grad():
            return _run(hidden_SD, weight_VD, target_S.contiguous(), chunk, dtype, False, False)[0]
