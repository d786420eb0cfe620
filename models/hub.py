"""A model of the suite as transformers has models: config, forward, a cache for `generate`. `models.export` copies it.

transformers copies single files beside each other and runs them there, so in an exported folder every module of the suite has
a flat name (models/memory.py is models_memory.py) and kernels are plain torch's.

B batch, T new positions, S positions of the attention mask, D d_model.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

import kernels
import models
from models.decode import DecodeState
from models.memory import Memory, permutation
from models.stored import model_config
from models.transformer import Transformer, rotary


def stand_alone() -> None:
    """In an exported folder: what is loaded by name lies beside this file, and kernels are plain torch's."""
    models.import_module = lambda name: importlib.import_module("." + name.replace(".", "_"), __package__)  # type: ignore
    kernels.backend = lambda device: "reference"
    kernels._function = lambda operation, chosen: getattr(kernels.reference, operation)  # type: ignore[assignment]


class SuiteConfig(PretrainedConfig):
    """`model` is a run's config.yaml under that name; the rest are transformers' names for what is in it."""

    model_type = "ultramem_suite"

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.model = model or {}
        if model:
            self.vocab_size, self.hidden_size = model["vocab_size"], model["d_model"]
            self.num_hidden_layers, self.num_attention_heads = model["n_layers"], model["n_heads"]
            self.max_position_embeddings = model["seq_len"]
        super().__init__(**kwargs | {"tie_word_embeddings": False})  # a tied head has no weight of its own here


@dataclass
class Part:
    """Rows that begin with equally many pads, and what decoding keeps of them."""

    pads: int
    rows: Tensor
    state: DecodeState | None


class Past:
    """What `generate` keeps and hands back; no `Cache` of transformers', whose layers have keys and values alone."""

    is_compileable = False

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, pads included."""
        return max((part.pads + part.state.length for part in self.parts if part.state), default=0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i goes on from row beam_idx[i], which is one of the same prompt and so of the same part."""
        for part in self.parts:
            if part.state:
                taken = (beam_idx[part.rows, None] == part.rows).long().argmax(-1)
                part.state = part.state.take(taken, part.state.capacity)


def pads_of(mask_BS: Tensor | None, n_rows: int, decoding: bool) -> list[int]:
    """Pads that each row begins with.

    Raises:
        ValueError: a row has a pad between tokens, or, `decoding`, after them.
    """
    if mask_BS is None:
        return [0] * n_rows
    seen_BS = mask_BS.bool().cummax(-1).values
    last_BS = mask_BS.bool().flip(-1).cummax(-1).values.flip(-1)
    if not (mask_BS.bool() | ~seen_BS | (torch.zeros_like(seen_BS) if decoding else ~last_BS)).all():
        raise ValueError("attention_mask hides positions behind the first token: pad on the left, where generation goes on")
    return (~seen_BS).sum(-1).clamp(max=mask_BS.shape[1] - 1).tolist()


class SuiteForCausalLM(PreTrainedModel, GenerationMixin):
    """A Transformer of the suite behind transformers' interface.

    Raises:
        ValueError: a sequence is longer than the model's `seq_len`, or padded elsewhere than on the left.
    """

    config_class = SuiteConfig
    _supports_sdpa = True

    def __init__(self, config: SuiteConfig):
        super().__init__(config)
        self.model = Transformer(model_config(config.model))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value  # type: ignore[assignment]  # whatever the user has

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Layers fill their own weights; what is derived and not stored is made again after loading."""
        if isinstance(module, Transformer):
            cos_TK, sin_TK = rotary(module.cfg.seq_len, module.cfg.d_head, module.cfg.rope_theta)
            module.cos_TK.copy_(cos_TK)
            module.sin_TK.copy_(sin_TK)
        elif isinstance(module, Memory) and module.shuffle is not None and "shuffle" in module._non_persistent_buffers_set:
            module.shuffle.copy_(permutation(len(module.shuffle)))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,  # position_ids and the like: they follow from the mask
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and with `labels` the mean cross-entropy plus, in training, the layers' auxiliary loss.

        Args:
            input_ids: (B, T); with `past_key_values` only the new ones.
            attention_mask: (B, S), 0 where pads stand; all on the left.
            use_cache: keep what `generate` goes on from; never with gradients.
            labels: (B, T), -100 where none.
            logits_to_keep: of the last positions only; 0 is all.
        """
        if self.training:
            self.model.refresh()
        past = past_key_values
        if past is None and use_cache and not torch.is_grad_enabled():
            past = Past()
        hidden_BTD, aux = self.hidden(input_ids, attention_mask, past)
        loss = None
        if labels is not None:
            # Position t predicts t + 1; the logits are never stored whole.
            loss = aux + kernels.cross_entropy(
                hidden_BTD[:, :-1].flatten(0, 1), self.model.head_weight, labels[:, 1:].flatten().contiguous()
            )
        logits = F.linear(hidden_BTD[:, -logits_to_keep:], self.model.head_weight)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)

    def hidden(self, tokens_BT: Tensor, mask_BS: Tensor | None, past: Past | None) -> tuple[Tensor, Tensor]:
        """As `Transformer.hidden`, rows with other pads apart; hidden states of pads are zeros."""
        (B, T), model = tokens_BT.shape, self.model
        parts = past.parts if past is not None else []
        first = not parts
        if first:
            pads_B = torch.tensor(pads_of(mask_BS, B, past is not None), device=tokens_BT.device)
            for pads in pads_B.unique().tolist():
                rows = (pads_B == pads).nonzero()[:, 0]
                parts.append(Part(pads, rows, None if past is None else model.decode_state(len(rows), self.room(T))))
        hidden_BTD, aux = model.embedding.weight.new_zeros(B, T, model.cfg.d_model), model.embedding.weight.new_zeros(())
        for part in parts:
            begin = part.pads if first else 0
            if part.state and part.state.length + T - begin > part.state.capacity:
                whole = torch.arange(len(part.rows), device=part.rows.device)
                part.state = part.state.take(whole, self.room(part.state.length + T))
            part_BTD, aux_part = model.hidden(tokens_BT[part.rows, begin:], part.state)
            if len(parts) == 1 and not begin:
                return part_BTD, aux_part
            hidden_BTD[part.rows, begin:] = part_BTD.to(hidden_BTD.dtype)
            aux = aux + aux_part * (len(part.rows) / B)
        return hidden_BTD, aux

    def room(self, n_tokens: int) -> int:
        """Length of the decode state that takes so many tokens, and as many again."""
        return min(2 * n_tokens, self.model.cfg.seq_len)
