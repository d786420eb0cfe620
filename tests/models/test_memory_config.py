"""Configs of the memory layers: where a layer lies, what its tables share, what is refused."""

import pytest
import torch
from memory_layers import CONFIGS, PLACE, SIZES, D, L, built, layer_of, model_of

from models.memory import permutation
from models.pkm import PKMConfig
from models.ultramem import UltraMemConfig
from models.ultramem_v2 import UltraMemV2Config


def test_memory_is_read_at_block_i_and_written_after_block_j():
    model = built(model_of(PKMConfig(**SIZES, placement=("0:2", "1:1"))))
    inputs, outputs = {}, {}
    for layer, block in enumerate(model.blocks):
        block.attention_norm.register_forward_pre_hook(lambda _, x, layer=layer: inputs.__setitem__(layer, x[0]))
        block.ffn_norm.register_forward_hook(lambda _, x, z, layer=layer: outputs.__setitem__(layer, z))
    read = []

    def stub(shift):
        def forward(z_BTD, cache=None):
            read.append(z_BTD)
            return torch.full_like(z_BTD, shift), z_BTD.new_zeros(())

        return forward

    for memory, shift in zip(model.memories, (100.0, 1000.0), strict=True):
        memory.forward = stub(shift)
    tokens_BT = torch.randint(0, 64, (1, 6))
    with torch.no_grad():
        model.hidden(tokens_BT)
        assert torch.equal(read[0], outputs[0])
        assert torch.equal(read[1], outputs[1])
        jump = [(inputs[i + 1] - inputs[i]).mean().item() for i in range(L - 1)]
    assert jump == pytest.approx([0, 1000, 100], abs=2)


def test_placement_mistakes_are_one_sentence():
    for placement, words in (
        (("2:1",), "0 <= i <= j"),
        (("1:4",), "n_layers = 4"),
        (("1",), "must read i:j"),
        (("all", "1:1"), "i:j"),
    ):
        with pytest.raises(ValueError, match=words):
            PKMConfig(**SIZES, placement=placement).cost(D, L)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score_fn": "relu"}, "score_fn 'relu' is not one of softmax, none"),
        ({"tucker_rank": 3}, "d_key 8 is not divisible by the tucker_rank 3"),
        ({"expansion": 3}, "is not a square"),
        ({"d_value": 15}, "not divisible by n_cores 2"),
        ({"retrieval": "product"}, "n_cores 2 needs retrieval tucker"),
        ({"top_m": 577}, "exceeds the 576 cells"),
        ({"n_mem_heads": 0}, "n_mem_heads 0 must be at least 1"),
        ({"placebo": "sugar"}, "placebo 'sugar' is not one of none, one-row, frozen, frozen-layer, shuffled, scattered"),
    ],
)
def test_config_mistakes_name_the_field(fields, words):
    with pytest.raises(ValueError, match=words):
        UltraMemConfig(**SIZES | PLACE | fields)


def test_value_sharing_windows():
    def windows(**fields):
        cfg = UltraMemV2Config(**SIZES, d_value=8, **fields)
        modules = [placed.module for placed in cfg.memories(D, L)]
        return modules, [(id(m.table), *m.window[1:]) for m in modules]

    _, seen = windows()
    assert len({table for table, *_ in seen}) == L
    assert {tuple(rest) for _, *rest in seen} == {(144, 12, 0)}
    ring, seen = windows(share="ring", share_ratio=0.5)
    assert len({table for table, *_ in seen}) == 1
    assert [rest for _, *rest in seen] == [[4 * 144, 16, 144 * i] for i in range(L)]  # 16 = floor(sqrt(0.5 * 4 * 144))
    row_TM, _ = ring[3].address(torch.arange(ring[3].axis ** 2)[None])
    assert row_TM.unique().tolist() == sorted([*range(432, 576), *range(256 - 144)])  # own rows first, then around
    state = model_of(UltraMemV2Config(**SIZES, d_value=8, share="ring")).build().state_dict()
    assert sum("values_NC" in name and "pre" not in name for name in state) == 1  # one copy in a checkpoint
    _, seen = windows(share="block", share_ratio=0.5)
    assert [table == seen[0][0] for table, *_ in seen] == [True, True, False, False]
    assert {tuple(rest) for _, *rest in seen} == {(288, 16, 0)}
    reads = UltraMemV2Config(**SIZES, d_value=8, share="ring").cost(D, L).only("table").parts
    assert [part.reads for part in reads] == [L * 1 * 4]


def test_the_shuffle_is_fixed_scatters_a_values_copies_and_is_not_stored():
    layer = layer_of(CONFIGS["ultramem"])
    assert torch.equal(layer.shuffle, permutation(24**2))
    assert "shuffle" not in layer.state_dict()
    assert layer.shuffle.sort().values.tolist() == list(range(576))
    row_TM, block_TM = layer.address(torch.arange(576)[None])
    assert (torch.bincount(row_TM[0]) == 4).all()
    assert (torch.bincount(block_TM[0]) == 144).all()
    columns = [set((torch.nonzero(row_TM[0] == row)[:, 0] % 24).tolist()) for row in range(144)]
    assert sum(len(column) for column in columns) > 3.5 * 144  # plain concatenation would give 1 column per value
