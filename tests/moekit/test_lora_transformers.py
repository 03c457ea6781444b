"""Grouped LoRA of the experts of transformers, whatever implementation they had."""

import copy

import pytest
import torch

from moekit.interop import register_experts, swap_moe_blocks_
from moekit.lora import add_lora_, lora_parameters, merge_lora_, remove_lora_
from tests.moekit.interop_experts_cases import KINDS, experts_of, inputs_of
from tests.moekit.lora_models import trained
from tests.moekit.transformers_families import MARKS, model_of
from tests.oracles import relative_error

pytestmark = MARKS
PROMPT = torch.arange(6)[None]


@pytest.fixture(autouse=True)
def _registered():
    register_experts()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_every_layout(kind):
    experts = experts_of(kind)
    inputs = inputs_of()
    experts.config._experts_implementation = "moekit"
    expected = experts(*inputs)
    add_lora_(experts, rank=3)
    assert torch.equal(experts(*inputs), expected)
    trained(experts)
    output = experts(*inputs)
    output.sum().backward()
    assert relative_error(output, expected) > 1e-2
    assert {name for name, p in experts.named_parameters() if p.grad is not None} == {
        f"lora.{each}" for each in ("up_a", "up_b", "down_a", "down_b")
    }
    merge_lora_(experts)
    assert relative_error(experts(*inputs), output) < 1e-5
    remove_lora_(experts)
    assert type(experts) is kind
    experts.config._experts_implementation = "eager"
    assert relative_error(experts(*inputs), output) < 1e-5


@pytest.mark.parametrize("mode", ["eager", "registered", "swapped"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_whole_models_start_from_the_output_and_train(family, mode):
    model = model_of(family)
    if mode == "registered":
        model.set_experts_implementation("moekit")
    elif mode == "swapped":
        swap_moe_blocks_(model)
    with torch.no_grad():
        expected = model(PROMPT).logits
    names = set(model.state_dict())
    assert len(add_lora_(model, "model.layers.*.mlp", rank=2)) == len(model.model.layers)
    assert {name for name in model.state_dict() if ".lora." not in name} == names
    with torch.no_grad():
        start = model(PROMPT).logits
    assert torch.equal(start, expected) if mode != "eager" else relative_error(start, expected) < 1e-5
    optimizer = torch.optim.Adam(lora_parameters(model), lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(PROMPT, labels=PROMPT).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    model.generate(PROMPT, attention_mask=PROMPT >= 0, max_new_tokens=2, do_sample=False)


def test_models_are_saved_with_their_adapters_or_merged(tmp_path):
    model = model_of("mixtral")
    add_lora_(model, rank=2)
    trained(model)
    with torch.no_grad():
        output = model(PROMPT).logits
    assert torch.equal(copy.deepcopy(model)(PROMPT).logits, output)
    merge_lora_(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert relative_error(loaded(PROMPT).logits, output) < 1e-4


def test_swapped_blocks_are_restored_once_adapters_are_off():
    model = model_of("mixtral")
    swapped = swap_moe_blocks_(model)
    add_lora_(model, rank=2)
    with pytest.raises(ValueError, match="undo what changed its class first"):
        swapped.restore()
    remove_lora_(model)
    swapped.restore()
    assert type(model.model.layers[0].mlp.experts).__name__ == "MixtralExperts"


def test_blocks_with_adapters_are_not_swapped_or_converted():
    model = model_of("mixtral")
    add_lora_(model, rank=2)
    with pytest.raises(ValueError, match="lora"):
        swap_moe_blocks_(model)


@pytest.mark.parametrize("family", ["dbrx", "llama4", "longcat_flash"])
def test_experts_that_are_not_stacked_are_refused(family):
    with pytest.raises(ValueError, match=r"experts '.*experts' must be stacked, .* got a .*Experts: leave them out"):
        add_lora_(model_of(family))
