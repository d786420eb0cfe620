"""Softmax and cross-entropy of a chunk of logits in C++ (`src/cross_entropy.cpp`)."""

import torch
from torch import Tensor

from kernels.cpu.call import SUFFIX, call


def softmax_step(logits_KV: Tensor, target_K: Tensor, scale: float | Tensor, need_grad: bool) -> Tensor:
    """Loss per row (0 where the target is negative); with need_grad the logits become the gradient of scale * loss."""
    loss_K = torch.empty(len(target_K), dtype=torch.float32)
    name = f"softmax_step_{SUFFIX[logits_KV.dtype]}"
    call(name, logits_KV, target_K, *logits_KV.shape, float(scale), loss_K, int(need_grad), work=len(target_K))
    return loss_K
