"""LoRA through the Triton kernels: grouped adapters, and those of peft on experts and gate."""

import copy

import pytest
import torch
from torch import Tensor, nn

from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.lora import add_lora_, lora_parameters
from moekit_kernels.grouped_gemm import launches_weight_grads
from tests.moekit.lora_models import trained
from tests.oracles import relative_error

peft = pytest.importorskip("peft")

DIM, HIDDEN, EXPERTS, TOKENS = 20, 12, 4, 30


class Block(nn.Module):
    """A model with one layer."""

    def __init__(self, moe: SparseMoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x).output


def make(impl: str, device: torch.device, **options) -> Block:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, 2, impl=impl, init_scale=1.0)
    options = {"bias": True, "init_scale": 1.0} | options
    return Block(SparseMoE(router, FFNExperts(DIM, HIDDEN, EXPERTS, impl=impl, **options), impl=impl)).to(device)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(x)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    (output * weight).sum().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def on(impl: str, model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "impl"):
            module.impl = "auto"
    for module in other.modules():
        if hasattr(module, "impl"):
            module.impl = impl
    return other


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_grouped_adapters_are_those_of_the_reference(device, monkeypatch, activation):
    model, x = make("triton", device, activation=activation), torch.randn(TOKENS, DIM, device=device)
    expected = model(x)
    add_lora_(model, rank=3)
    assert relative_error(model(x), expected) < 1e-6
    trained(model)
    reference, expected_gradients = gradients(on("reference", model), x)
    shapes = []
    weight_grad = launches_weight_grads.linear_weight_grad

    def record(*arguments):
        result = weight_grad(*arguments)
        shapes.append(tuple(result[0].shape))
        return result

    monkeypatch.setattr(launches_weight_grads, "linear_weight_grad", record)
    output, computed = gradients(model, x)
    assert relative_error(output, reference) < 1e-5
    assert computed.keys() == expected_gradients.keys()
    for name, gradient in computed.items():
        assert relative_error(gradient, expected_gradients[name]) < 1e-5, name
    # Of the adapters alone: frozen experts cost no launch and no memory.
    assert sorted(shapes) == sorted(tuple(p.shape) for p in lora_parameters(model))


@pytest.mark.parametrize(
    "config",
    [
        {"target_parameters": ["moe.experts.up_proj", "moe.experts.down_proj"], "target_modules": []},
        {"target_modules": "all-linear"},
        {"target_parameters": ["gate.layers.0.weight"], "target_modules": []},
    ],
    ids=["experts", "gate", "weight of the gate"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_adapters_of_peft_reach_fused_experts_and_the_fused_router(device, config):
    model, x = make("triton", device), torch.randn(TOKENS, DIM, device=device)
    expected = model(x)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **config))
    assert relative_error(model(x), expected) < 1e-6
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    moe = model.base_model.model.moe
    reference_model = on("reference", model)
    reference, expected_gradients = gradients(reference_model, x)
    logits = reference_model.base_model.model.moe.route(x).logits
    assert relative_error(moe.route(x).logits, logits) < 1e-5
    output, computed = gradients(model, x)
    assert relative_error(output, reference) < 1e-5
    assert relative_error(output, expected) > 1e-3
    assert computed.keys() == expected_gradients.keys()
    for name, gradient in computed.items():
        assert relative_error(gradient, expected_gradients[name]) < 1e-4, name
    with torch.no_grad():  # no launch or routing is repeated for adapters that changed
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert relative_error(model(x), expected) < 1e-6
