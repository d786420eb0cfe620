"""Full fine-tuning moves everything, LoRA its adapters alone and all of them; the model that is taught from stays as it is."""

import pytest
import torch
from forgetting_models import ARCHS, build, documents

from evals.forgetting.settings import Settings, Way
from evals.forgetting.ways import pupil
from evals.records.errors import UserError
from models.moe import MoE
from models.transformer import Transformer

FULL, LORA = (Way(name=name, start=1e-3) for name in ("full", "lora"))
BATCH = documents(lengths=(9, 5, 12))


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("arch", ARCHS)
def test_full_moves_every_parameter_of_a_copy(arch):
    model = build(ARCHS[arch])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learner = pupil(model, FULL, 1e-2, 4, {}, 0)
    first = learner.step(BATCH)
    for _ in range(8):
        last = learner.step(BATCH)
    assert last < first
    assert moved(before, dict(learner.model.named_parameters())) == set(before)
    assert not moved(before, dict(model.named_parameters()))
    assert learner.trained == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_lora_starts_as_the_model_and_moves_its_adapters_alone(arch):
    model = build(ARCHS[arch])
    learner = pupil(model, LORA, 1e-2, 4, {}, 0)
    assert isinstance(learner.model, Transformer)
    with torch.no_grad():
        torch.testing.assert_close(learner.model.eval().logits(BATCH[0]), model.eval().logits(BATCH[0]))
    before = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    adapters = {name for name in before if "lora_" in name}
    first = learner.step(BATCH)
    for _ in range(4):
        last = learner.step(BATCH)
    assert last < first
    assert moved(before, dict(learner.model.named_parameters())) == adapters
    assert learner.trained == sum(before[name].numel() for name in adapters)
    with torch.no_grad():
        assert not torch.allclose(learner.model.eval().logits(BATCH[0]), model.logits(BATCH[0]))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_linear_map_and_expert_has_an_adapter_and_routers_have_none(arch):
    model = build(ARCHS[arch])
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    experts = {name for name, module in model.named_modules() if isinstance(module, MoE)}
    learner = pupil(model, LORA, 1e-2, 4, {}, 0)
    adapted = [name for name, _ in learner.model.named_parameters() if ".lora_A" in name]
    assert len(adapted) == len([name for name in linear if not name.endswith("router")]) + 2 * len(experts)
    assert not any("router" in name for name in adapted)


def test_the_rate_warms_up_and_stays():
    learner = pupil(build(ARCHS["dense"]), FULL, 1e-2, 4, {}, 0)
    rates = []
    for _ in range(12):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(BATCH)
    assert rates == pytest.approx([1e-3 * min(10, step + 1) for step in range(12)])


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"level": 0.95}, "stop 0.7 is below level 0.95"), ({"level": 0.0}, "level is 0.0"), ({"people": 1}, "two answers")],
)
def test_a_setting_out_of_range_is_one_sentence(changed, words):
    with pytest.raises(UserError, match=words):
        Settings(**changed)
    with pytest.raises(UserError, match="every is 0"):
        Settings(every=0)
