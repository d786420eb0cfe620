"""Decoder-only Transformer with one feed-forward slot per block; every architecture of the suite plugs into it.

RMSNorm, rotary positions, QK-norm, grouped-query attention, tied embeddings, no biases (P2's open backbone, OLMoE).
Skip placement (P1 section 3.2): a memory layer reads the normalised FFN input of block i, and its output joins the
residual stream after block j >= i, so that its lookup can run beside blocks i+1..j. Any number may be in flight.

B batch, T time, S past + T, D d_model, H query heads, G key/value heads, K d_head, V vocab_size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels.attention import causal_attention
from models.cost import Cost, dense
from models.decode import DecodeState
from models.linear import Linear, Norm
from models.overlap import Overlap, at_once
from models.slot import ArchConfig

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A language model: a backbone and the architecture in its feed-forward slots.

    Args:
        arch: what fills the slots.
        seq_len: longest context in tokens.
        n_kv_heads: key/value heads; None means as many as query heads.
        init_std: of every linear map; None means sqrt(2 / (5 d_model)) (P2 appendix A). Output maps of attention and of
            the FFN are scaled by 1/sqrt(2 n_layers) on top.
        base_width: d_model at which the recipe was tuned; 0 is the standard parametrisation. Otherwise muP's for Adam (Yang
            et al. 2022, table 8): the embedding starts as wide as at the base width and the logits are multiplied by
            base_width / d_model; hidden matrices have their learning rates from `workflows.optim`. At d_model = base_width
            nothing changes.
        tie_embeddings: the output head is the embedding matrix.
        qk_norm: RMSNorm over each head's queries and keys, before the rotation.
    """

    arch: ArchConfig
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    seq_len: int
    init_std: float | None = None
    base_width: int = 0
    tie_embeddings: bool = True
    qk_norm: bool = True
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        if (self.d_model // self.n_heads) % 2:
            raise ValueError(f"d_model / n_heads = {self.d_head} is odd, and rotary positions need an even width")
        if self.base_width < 0:
            raise ValueError(f"base_width {self.base_width} must be a width, or 0")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def std(self) -> float:
        return self.init_std if self.init_std is not None else (2 / (5 * self.d_model)) ** 0.5

    @property
    def width_scale(self) -> float:
        """base_width / d_model: of the logits, and of the learning rate of what reads d_model inputs (muP)."""
        return self.base_width / self.d_model if self.base_width else 1.0

    def cost(self) -> Cost:
        """Every parameter of the model. The embedding is its own role and is left out of FLOPs; the head is tied to it
        or, untied, counted as embedding too (the papers count neither)."""
        block = Cost(
            (
                dense("attention", "attention", 2 * self.d_model * self.d_head * (self.n_heads + self.kv_heads)),
                dense("norms", "norm", 2 * self.d_model + (2 * self.d_head if self.qk_norm else 0)),
            )
        )
        ends = Cost(
            (
                dense("embedding", "embedding", self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)),
                dense("final norm", "norm", self.d_model),
            )
        )
        return ends + block * self.n_layers + self.arch.cost(self.d_model, self.n_layers)

    def kv_bytes(self, context: int, itemsize: int) -> int:
        """Bytes of keys and values that one sequence reads to decode one token after `context` tokens."""
        return 2 * self.n_layers * self.kv_heads * self.d_head * context * itemsize

    def build(self) -> Transformer:
        return Transformer(self)


def rotary(seq_len: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each (seq_len, d_head)."""
    inverse_K = theta ** (-torch.arange(0, d_head, 2).float() / d_head)
    angle_TK = torch.outer(torch.arange(seq_len).float(), inverse_K).repeat(1, 2)
    return angle_TK.cos(), angle_TK.sin()


class Attention(nn.Module):
    """Causal self-attention with grouped queries; a decode state keeps keys and values."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.n_heads, self.kv_heads, self.d_head = cfg.n_heads, cfg.kv_heads, cfg.d_head
        self.past_shape = (2, self.kv_heads, self.d_head)
        self.qkv = Linear(cfg.d_model, (self.n_heads + 2 * self.kv_heads) * self.d_head)
        self.out = Linear(self.n_heads * self.d_head, cfg.d_model)
        qk_norm = "rms" if cfg.qk_norm else "none"
        self.q_norm = Norm(self.d_head, qk_norm)
        self.k_norm = Norm(self.d_head, qk_norm)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, cache: DecodeState | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv_BTNK = self.qkv(x_BTD).view(B, T, -1, self.d_head)
        gains = self.q_norm.weight, self.k_norm.weight
        q_BHTK, k_BGSK, v_BGSK = kernels.heads(qkv_BTNK, *gains, cos_TK, sin_TK, self.n_heads)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(self, k_BGSK, v_BGSK)
        S, groups = k_BGSK.shape[2], self.n_heads // self.kv_heads
        if T == S:
            k_BHSK, v_BHSK = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSK, v_BGSK))
            y_BHTK = causal_attention(q_BHTK, k_BHSK, v_BHSK)
        else:
            # Heads that share keys stand in line as positions, so that keys and values are never repeated.
            q_BGRK = q_BHTK.reshape(B, self.kv_heads, groups * T, -1)
            mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=x_BTD.device).tril(S - T).repeat(groups, 1)
            y_BHTK = F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=mask).reshape(q_BHTK.shape)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, -1))


class Block(nn.Module):
    """Attention, then the feed-forward slot, each behind a norm."""

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = Norm(cfg.d_model)
        self.attention = Attention(cfg)
        self.ffn_norm = Norm(cfg.d_model)
        self.ffn = cfg.arch.feed_forward(cfg.d_model, layer, cfg.n_layers)


class Transformer(nn.Module):
    """Maps tokens to logits or to a loss; see the module docstring.

    `overlap` may be set to an `Overlap`: in eval mode without gradients, memory layers then run beside the blocks.

    Raises:
        ValueError: a memory layer is placed outside the blocks, or a sequence is longer than `seq_len`.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.overlap: Overlap | None = None
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = Norm(cfg.d_model)
        self.head = None if cfg.tie_embeddings else Linear(cfg.d_model, cfg.vocab_size)
        placed = cfg.arch.memories(cfg.d_model, cfg.n_layers)
        for read_at, write_at, _ in placed:
            if not 0 <= read_at <= write_at < cfg.n_layers:
                raise ValueError(f"placement {read_at}:{write_at} must satisfy 0 <= read <= write < n_layers = {cfg.n_layers}")
        self.memories = nn.ModuleList(memory.module for memory in placed)
        self.placement = [(memory.read_at, memory.write_at) for memory in placed]
        cos_TK, sin_TK = rotary(cfg.seq_len, cfg.d_head, cfg.rope_theta)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)
        self.init_weights()

    if TYPE_CHECKING:
        blocks: Any  # a ModuleList, which does not say of what
        memories: Any
        cos_TK: Tensor
        sin_TK: Tensor

    @torch.no_grad()
    def init_weights(self) -> None:
        """The backbone's weights; memory layers and experts initialise what is theirs in their own constructors."""
        std, out_std = self.cfg.std, self.cfg.std / (2 * self.cfg.n_layers) ** 0.5
        for ends in (self.embedding, self.head):
            if ends is not None:
                nn.init.normal_(ends.weight, std=std * self.cfg.width_scale**-0.5)
        for block in self.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=std)
            nn.init.normal_(block.attention.out.weight, std=out_std)
            block.ffn.init_weights(std, out_std)
        for memory in self.memories:
            memory.start_at_base_width(self.cfg.width_scale)

    def decode_state(self, batch: int, length: int, dtype: torch.dtype | None = None, device: str | None = None) -> DecodeState:
        """Room for `batch` sequences of at most `length` tokens, in the dtype and on the device of the weights."""
        past = {}
        for module in self.modules():
            if hasattr(module, "past_shape"):
                n_tensors, n_heads, width = module.past_shape  # type: ignore[misc]  # as pyproject.toml says of hasattr
                shape = (n_tensors, batch, n_heads, length, width)
                past[module] = self.embedding.weight.new_empty(shape, dtype=dtype, device=device, requires_grad=False)
        return DecodeState(past)

    def hidden(self, tokens_BT: Tensor, cache: DecodeState | None = None) -> tuple[Tensor, Tensor]:
        """Final normalised hidden states (B, T, D), scaled for the head, and the summed auxiliary loss.

        `cache`, from `decode_state`, holds the tokens before these and takes these in.
        """
        past = cache.length if cache is not None else 0
        T = tokens_BT.shape[1]
        if past + T > self.cfg.seq_len:
            raise ValueError(f"{past + T} tokens do not fit into seq_len {self.cfg.seq_len}")
        if cache is not None and past + T > cache.capacity:
            raise ValueError(f"{past + T} tokens do not fit into a decode state of {cache.capacity}")
        x_BTD = self.embedding(tokens_BT)
        cos_TK, sin_TK = self.cos_TK[past : past + T].to(x_BTD.dtype), self.sin_TK[past : past + T].to(x_BTD.dtype)
        aux = x_BTD.new_zeros(())
        start = at_once if self.overlap is None or self.training or torch.is_grad_enabled() else self.overlap.start
        pending: dict[int, list[Callable[[], tuple[Tensor, Tensor]]]] = defaultdict(list)
        for layer, block in enumerate(self.blocks):
            x_BTD = x_BTD + block.attention(block.attention_norm(x_BTD), cos_TK, sin_TK, cache)
            z_BTD = block.ffn_norm(x_BTD)
            for memory, (read_at, write_at) in zip(self.memories, self.placement, strict=True):
                if read_at == layer:
                    pending[write_at].append(start(memory, z_BTD, cache))
            y_BTD, aux_ffn = block.ffn(z_BTD, cache)
            x_BTD, aux = x_BTD + y_BTD, aux + aux_ffn
            for finish in pending.pop(layer, ()):
                y_BTD, aux_memory = finish()
                x_BTD, aux = x_BTD + y_BTD, aux + aux_memory
        if cache is not None:
            cache.length = past + T
        x_BTD = self.norm(x_BTD)
        return x_BTD if self.cfg.width_scale == 1 else x_BTD * self.cfg.width_scale, aux

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, tokens_BT: Tensor, cache: DecodeState | None = None) -> Tensor:
        return F.linear(self.hidden(tokens_BT, cache)[0], self.head_weight)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, precision: str = "fp32") -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats per token, and the auxiliary loss; targets of -100 are left out."""
        hidden_BTD, aux = self.hidden(tokens_BT)
        ce = kernels.cross_entropy(hidden_BTD.flatten(0, 1), self.head_weight, targets_BT.flatten(), precision=precision)
        return ce, aux

    def refresh(self) -> None:
        """Lets layers renew what they derive from their weights; the trainer calls it before each step's forward."""
        for module in self.modules():
            if module is not self and hasattr(module, "refresh"):
                module.refresh()

    def tables(self) -> list[nn.Module]:
        """Modules that hold value tables (`value_names` names them), which have their own learning rate and update."""
        return [module for module in self.modules() if hasattr(module, "value_names")]
