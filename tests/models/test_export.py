"""Exported runs: every architecture gives its own logits and greedy text without this repository on the path."""

import ast
import json
from dataclasses import replace

import pytest
import torch
from exported_runs import alone, finished, prepared
from memory_layers import MODELS, PLACEBOS, model_of

from models import ARCHS, export

NAMES = ("dense", "moe", "moe-gelu", "pkm", "peer", "memory_plus", "ultramem-r4-h4-E9", "ultramem", "v2", "v2-ring", "hybrid")
VARIANTS = {name: MODELS[name] for name in NAMES}
VARIANTS |= {name: PLACEBOS[name] for name in ("pkm-shuffled", "ultramem-scattered")}
SHAPES = {"untied": {"tie_embeddings": False}, "grouped_base": {"n_kv_heads": 1, "base_width": 16}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> (run's folder, export's folder, our model, what the export gives)."""
    work = tmp_path_factory.mktemp("exported")
    vocab = prepared(work / "data").get_vocab_size()
    models = {name: model_of(arch, vocab_size=vocab, seq_len=40) for name, arch in VARIANTS.items()}
    models |= {name: replace(models["ultramem"], **fields) for name, fields in SHAPES.items()}
    ours, folders = {}, {}
    for name, model in models.items():
        ours[name] = finished(work / "runs" / name, work / "data", model)
        folders[name] = work / "out" / name
        export.export(work / "runs" / name, folders[name])
    found = alone(list(folders.values()), work)
    return {name: (work / "runs" / name, folders[name], ours[name], of(found, name)) for name in models}


def of(found, name):
    return {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}


def greedy(model, tokens_T, n):
    """Greedy continuation with the state of models/decode.py."""
    cache, new = model.decode_state(1, len(tokens_T) + n), []
    step = tokens_T[None]
    with torch.no_grad():
        for _ in range(n):
            new.append(int(model.logits(step, cache)[0, -1].argmax()))
            step = torch.tensor([new[-1:]])
    return new


def test_every_architecture_of_the_registry_is_exported():
    assert {arch.name for arch in VARIANTS.values()} == set(ARCHS)


@pytest.mark.parametrize("name", [*VARIANTS, *SHAPES])
def test_logits_and_greedy_text_are_ours(exported, name):
    _, _, model, found = exported[name]
    with torch.no_grad():
        expected = model.logits(found["ids"][None])
    assert expected.std() > 0.1
    torch.testing.assert_close(found["logits"], expected, rtol=1e-5, atol=1e-5)
    assert found["greedy"].tolist() == greedy(model, found["ids"], 12)


def test_a_folder_holds_weights_and_text_and_what_its_architecture_needs(exported):
    for _, folder, _, _ in exported.values():
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json", ".py", ".md"}
    dense, moe = ({path.name for path in exported[name][1].iterdir()} for name in ("dense", "moe"))
    assert moe - dense == {"models_moe.py", "models_balance.py"}
    assert "models_ultramem.py" not in dense


def kept(text):
    """A module without its imports of other modules of the suite, or what an export makes of them."""
    body = ast.parse(text)
    for node in ast.walk(body):
        for field in ("body", "orelse"):
            if isinstance(found := getattr(node, field, None), list):
                setattr(node, field, [one for one in found if not turned(one)] or [ast.Pass()])
    return ast.dump(body)


def turned(node):
    refused = isinstance(node, ast.Raise) and "stays in the repository" in ast.unparse(node)
    return refused or bool(export.imported(node)) or (isinstance(node, ast.ImportFrom) and node.level == 1)


def test_modules_are_the_repositorys_but_for_their_imports(exported):
    _, folder, _, _ = exported["hybrid"]
    files = {path.name for path in folder.glob("*.py")}
    carried = {module for name in files if (module := name[:-3].replace("_", ".", 1)) != "modeling.suite"}
    assert {"models.hybrid", "models.moe", "models.ultramem", "kernels.reference", "kernels", "models"} <= carried
    assert not any(module.startswith(("kernels.cpu", "kernels.triton", "models.ultramem.v2")) for module in carried)
    for module in carried:
        text = (folder / f"{export.flat(module)}.py").read_text()
        assert kept(text) == kept(export.source(module).read_text()), module
        absolute = [node for node in ast.walk(ast.parse(text)) if export.imported(node)]
        assert not absolute, module


def test_batches_padded_on_the_left_and_beams_give_what_each_row_gives_alone(exported, tmp_path, monkeypatch):
    run, _, _, found = exported["ultramem"]
    export.export(run, tmp_path / "again")
    monkeypatch.syspath_prepend(tmp_path)
    model = hub_model(tmp_path / "again")
    x = found["ids"][:8]
    batch, mask = torch.stack((torch.cat((x[:3] * 0, x[:5])), x)), torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    for fields in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None} | fields
        together = model.generate(batch, attention_mask=mask, **options)[:, 8:]
        for row, prompt in zip(together, (x[:5], x), strict=True):
            assert row.tolist() == model.generate(prompt[None], use_cache=False, **options)[0, len(prompt) :].tolist()
    with torch.no_grad():
        left = model(batch, attention_mask=mask).logits[0, 3:]
        torch.testing.assert_close(left, model(x[None, :5]).logits[0])
        past = model(batch.flip(0), use_cache=True).past_key_values
        past.reorder_cache(torch.tensor([1, 0]))
        step = model(x[:2, None], past_key_values=past, use_cache=True).logits[:, 0]
        torch.testing.assert_close(step, model(torch.cat((batch, x[:2, None]), 1)).logits[:, -1])
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(batch.flip(1), attention_mask=mask.flip(1), max_new_tokens=2)
    with torch.no_grad():
        right = model(batch.flip(1), attention_mask=mask.flip(1)).logits[0, :5]
    torch.testing.assert_close(right, model(batch.flip(1)[:1, :5]).logits[0])


def hub_model(folder):
    from models.hub import SuiteConfig, SuiteForCausalLM

    return SuiteForCausalLM.from_pretrained(folder, config=SuiteConfig.from_pretrained(folder)).eval()


def test_an_exported_model_can_be_trained_on(exported):
    _, folder, ours, found = exported["moe"]
    model = hub_model(folder).train()
    x = found["ids"][None]
    loss = model(x, labels=x).loss
    ce, aux = ours.train().loss(x[:, :-1], x[:, 1:])
    ours.eval()
    assert aux > 0
    assert loss.item() == pytest.approx((ce + aux).item(), rel=0.01)  # the router's losses are taken over one token more
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_the_card_says_what_the_run_was(exported, tmp_path):
    run, folder, ours, _ = exported["dense"]
    assert "The run has no runs.csv." in (folder / "README.md").read_text()
    assert f"| parameters | {ours.cfg.cost().params} |" in (folder / "README.md").read_text()
    (run / "runs.csv").write_text("run,test_loss,git_commit,data_sha,tokens\ndense,4.25,abc123,def456,1000\n")
    export.export(run, folder)
    card = (folder / "README.md").read_text()
    for line in ("| test_loss | 4.25 |", "| git_commit | abc123 |", "| data_sha | def456 |", "| tokens | 1000 |"):
        assert line in card
    assert json.loads((folder / "config.json").read_text())["model"]["arch"]["name"] == "dense"


def test_mistakes_are_one_sentence(exported, tmp_path, monkeypatch, capsys):
    run, _, _, _ = exported["dense"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    for words, said in (
        ((tmp_path / "none", tmp_path / "out"), "is no finished run with weights"),
        ((run, tmp_path / "mine"), "exists and is no export"),
    ):
        monkeypatch.setattr("sys.argv", ["export", *map(str, words)])
        assert export.main() == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
