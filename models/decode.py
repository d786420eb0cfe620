"""What decoding keeps of the tokens it has seen: one buffer per layer, as long as the sequence may become, written in place.

A step writes at position `length` and reads views, so it allocates nothing that grows with the context, and its addresses
stay the same when the step is repeated at one length, as a CUDA graph needs. The inputs of a query convolution are kept for
all positions too (it reads the last few), so that setting `length` back is a complete rewind.

n tensors of a module, B sequences, H heads, T new positions, S positions seen including the new ones, K width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class DecodeState:
    """The past of B sequences; for use without gradients. `Transformer.decode_state` makes one.

    Args:
        past: of each module that keeps something, n tensors: (n, B, H, capacity, K).
        length: tokens seen. May be set to any smaller number: what came after is forgotten.
    """

    past: dict[nn.Module, Tensor]
    length: int = 0

    @property
    def capacity(self) -> int:
        return min(past.shape[3] for past in self.past.values())

    def append(self, module: nn.Module, *new_BHTK: Tensor) -> list[Tensor]:
        """Writes a module's tensors of the new positions; returns each of them over all positions (B, H, S, K), as views.

        `length` moves on only when the whole model has seen the tokens.
        """
        S = self.length + new_BHTK[0].shape[2]
        for past_BHSK, x_BHTK in zip(self.past[module], new_BHTK, strict=True):
            past_BHSK[:, :, self.length : S] = x_BHTK
        return [past_BHSK[:, :, :S] for past_BHSK in self.past[module]]

    def take(self, rows_B: Tensor, capacity: int) -> DecodeState:
        """The state of sequences `rows_B` of this one, any number of times each, in buffers of their own."""
        taken = DecodeState({}, self.length)
        for module, past in self.past.items():
            n_tensors, _, n_heads, _, width = past.shape
            taken.past[module] = past.new_empty(n_tensors, len(rows_B), n_heads, capacity, width)
            taken.past[module][..., : self.length, :] = past[..., : self.length, :].index_select(1, rows_B)
        return taken

    def pretend(self, length: int) -> None:
        """Sets `length` with noise as past, the same at all positions of a sequence: to time a step without running its
        context. Buffers never written would not do: their pages are all the operating system's one page of zeros."""
        for past in self.past.values():
            past.copy_(torch.randn_like(past[..., :1, :]).expand_as(past))
        self.length = length
