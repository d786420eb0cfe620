"""Offloaded tables give the outputs of the model: bit for bit as floats, within half a step quantised; bad files refused."""

import pytest
import torch
from memory_layers import CONFIGS, MODELS, PLACEBOS, built, model_of, tokens
from safetensors.torch import save_file

from models import rows as stored
from models.fold import fold
from models.offload import Offload, OffloadedTable, offload, pack, tables_of
from models.overlap import Overlap

ARCHS = CONFIGS | {"hybrid": MODELS["hybrid"], "v2-one-row": PLACEBOS["v2-one-row"], "pkm-scattered": PLACEBOS["pkm-scattered"]}
each_arch = pytest.mark.parametrize("name", ARCHS)


def model(name):
    return built(model_of(ARCHS[name]))


@torch.no_grad()
def decoded(one):
    """Logits of two sequences, prompt and then token by token behind a cache."""
    token_BT, state = tokens(2, 9, 64), one.decode_state(2, 9)
    steps = [one.logits(token_BT[:, :4], state), *(one.logits(token_BT[:, t : t + 1], state) for t in range(4, 9))]
    return torch.cat(steps, 1)


@pytest.fixture(scope="module")
def plain():
    return {name: decoded(model(name)) for name in ARCHS}


@each_arch
def test_mapped_floats_are_the_tables_bit_for_bit(name, plain, tmp_path):
    """From the checkpoint and packed, asked for ahead or not, and beside the blocks in a thread."""
    save_file(model(name).state_dict(), tmp_path / "model.safetensors")
    pack(model(name), tmp_path / "rows", 32)
    for file in ("model.safetensors", "rows"):
        for ahead in (True, False):
            found = offload(model(name), Offload(bits=32, ahead=ahead), tmp_path / file)
            assert torch.equal(decoded(found), plain[name])
    found.overlap = Overlap()
    assert torch.equal(decoded(found), plain[name])
    assert not [n for n, _ in found.named_parameters() if ".table." in n]


@each_arch
def test_a_half_precision_model_keeps_its_rows(name, tmp_path):
    half = model(name).bfloat16()
    expected = decoded(half)
    pack(half, tmp_path / "rows", 16)
    assert torch.equal(decoded(offload(half, Offload(bits=16), tmp_path / "rows")), expected)


@pytest.mark.parametrize("bits", [8, 4])
@each_arch
def test_quantised_rows_are_off_by_half_a_step_at_most(name, bits, plain, tmp_path):
    """Mapped and in memory alike; every row of every table of the model is read."""
    one = model(name)
    pack(one, tmp_path / "rows", bits)
    mapped = offload(model(name), Offload(bits=bits), tmp_path / "rows")
    held = offload(model(name), Offload(bits=bits, mapped=False))
    kept = {n: module for n, module in mapped.named_modules() if isinstance(module, OffloadedTable)}
    assert kept.keys() == tables_of(one).keys()
    for n, table in tables_of(one).items():
        for values in table.value_names:
            exact_NC = getattr(table, values).detach()
            found_NC = getattr(kept[n], values).read(torch.arange(len(exact_NC)))
            step_N1 = exact_NC.abs().amax(1, keepdim=True) / stored.LARGEST[bits]
            assert ((found_NC - exact_NC).abs() <= step_N1 * 0.50001).all()
            assert (found_NC - exact_NC).abs().max() > 0.2 * step_N1.max()
    assert torch.equal(decoded(mapped), decoded(held))
    assert not torch.equal(decoded(mapped), plain[name])


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("width", [1, 7, 16])
def test_codes_of_odd_widths_zeros_and_extremes(bits, width):
    values_NC = torch.randn(50, width) * torch.logspace(-6, 6, 50)[:, None]
    values_NC[3] = 0
    bytes_NB = stored.encode(values_NC, bits)
    assert bytes_NB.shape == (50, stored.row_bytes(width, bits))
    found_NC = stored.decode(bytes_NB, width, bits)
    assert found_NC.shape == values_NC.shape
    assert (found_NC[3] == 0).all()
    bound = {32: 0, 16: 2**-8, 8: 0.5001 / 127, 4: 0.5001 / 7}[bits]
    assert ((found_NC - values_NC).abs() <= bound * values_NC.abs().amax(1, keepdim=True)).all()
    if bits in stored.LARGEST:
        largest_N = values_NC.abs().argmax(1, keepdim=True)
        torch.testing.assert_close(found_NC.gather(1, largest_N), values_NC.gather(1, largest_N))


def test_rows_are_asked_for_when_the_input_is_there_and_read_where_the_output_is_needed(tmp_path, monkeypatch):
    """Of placements 0:1 and 2:2 in four blocks; what is asked for is what is read, in whole pages, each once."""
    one, said = model("ultramem"), []
    pack(one, tmp_path / "rows", 8)
    offload(one, Offload(bits=8), tmp_path / "rows")
    ask, read = stored.RowFile.ask, stored.Rows.read
    monkeypatch.setattr(stored.RowFile, "ask", lambda file, first, size: said.append("ask") or ask(file, first, size))
    monkeypatch.setattr(stored.Rows, "read", lambda rows, row_R: said.append("read") or read(rows, row_R))
    for number, block in enumerate(one.blocks):
        block.ffn.register_forward_hook(lambda *_, number=number: said.append(number))
    decoded(one)
    assert said[:8] == ["ask", 0, 1, "read", "ask", 2, "read", 3]


def test_pages_asked_for_are_those_of_the_rows(tmp_path):
    one, pages = model("v2"), []
    pack(one, tmp_path / "rows", 8)
    offload(one, Offload(bits=8), tmp_path / "rows")
    table = one.memories[2].table
    file, size = table.values_NC.file, table.values_NC.bytes_NB.shape[1]

    class Map:
        def madvise(self, _, start, length):
            pages.append(start)
            assert length == stored.PAGE

    file.map = Map()
    table.ask(torch.tensor([[0, 143, 0], [70, 1, 143]]))
    firsts = [table.values_NC.first + r * size for r in (0, 1, 70, 143)]
    assert set(pages) == {at // stored.PAGE * stored.PAGE for first in firsts for at in (first, first + size - 1)}


def test_records_begin_with_a_page_and_safetensors_reads_them(tmp_path):
    from safetensors.torch import load_file

    one = model("peer")
    pack(one, tmp_path / "rows", 4)
    file = stored.RowFile(tmp_path / "rows")
    assert file.tensors["memories.0.table"][2] % stored.PAGE == 0
    for name, bytes_NB in load_file(tmp_path / "rows").items():
        table = tables_of(one)[name]
        parts = [stored.encode(getattr(table, values).detach(), 4) for values in table.value_names]
        assert torch.equal(bytes_NB, torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing or no safetensors file"),
        (lambda path: path.write_bytes(b""), "is missing or no safetensors file"),
        (lambda path: path.write_bytes(b"\x10" + bytes(40)), "is missing or no safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut short"),
        (lambda path: pack(model("ultramem"), path, 8), "holds rows of 8 bits, not 4: pack them"),
        (lambda path: pack(model("peer"), path, 4), r"memories.0.table is U8 .*it is not of this model"),
        (lambda path: save_file(model("ultramem").state_dict(), path), "holds rows of 32 bits, not 4"),
        (lambda path: save_file({"x": torch.ones(2)}, path), "holds no memories.0.table.values_NC: it is not of this model"),
    ],
)
def test_a_bad_file_is_one_sentence(damage, words, tmp_path):
    pack(model("ultramem"), tmp_path / "rows", 4)
    damage(tmp_path / "rows")
    with pytest.raises(ValueError, match=words):
        offload(model("ultramem"), Offload(bits=4), tmp_path / "rows")


def test_what_cannot_be_offloaded_is_refused(tmp_path):
    held = Offload(bits=8, mapped=False)
    with pytest.raises(ValueError, match="dense has no value tables to offload"):
        offload(built(model_of(MODELS["dense"])), held)
    with pytest.raises(ValueError, match="folded or offloaded already"):
        offload(fold(model("ultramem")), held)
    with pytest.raises(ValueError, match="folded or offloaded already"):
        offload(offload(model("peer"), held), held)
    with pytest.raises(ValueError, match="mapped rows need a file"):
        offload(model("peer"), Offload())
    with pytest.raises(ValueError, match="bits 5 must be"):
        Offload(bits=5)
