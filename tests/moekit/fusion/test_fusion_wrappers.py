"""Modules that replace the layers of fusion modules and call what they replace."""

import pytest
import torch
from torch import Tensor, nn

from moekit import BidirectionalCrossAttention, CrossScaleAttention, ModalityGate
from tests.moekit.wrappers import WRAPPERS
from tests.oracles import assert_close

MAPS = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
LEFT, RIGHT = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
MODULES = {
    "gate": (lambda: ModalityGate((3, 5), per="modality", initial_gate=0.2), ["projection"], (LEFT,)),
    "cross-attention": (
        lambda: BidirectionalCrossAttention(8, num_heads=2),
        ["left_projections", "right_projections.key", "left_projections.query", "right_output"],
        (LEFT, RIGHT),
    ),
    "cross-scale": (
        lambda: CrossScaleAttention((3, 5), 8),
        ["projections.0", "projections.1", "heads.0", "heads.1.0", "heads.1.2"],
        (MAPS,),
    ),
}
SLOTS = [(kind, slot) for kind, (_, slots, _) in MODULES.items() for slot in slots]
slots = pytest.mark.parametrize(("kind", "slot"), SLOTS)


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[kind][0]()


def results(module: nn.Module, kind: str, leaves: list[nn.Parameter]) -> list[Tensor]:
    """Outputs and gradients."""
    outputs = [x for x in module(*MODULES[kind][2]) if x is not None]
    loss = sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@slots
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_whatever_stands_in_a_slot_is_called(kind: str, slot: str, wrapper: str) -> None:
    module = make(kind)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    leaves = list(module.parameters())
    expected = results(module, kind, leaves)
    module.set_submodule(slot, WRAPPERS[wrapper](module.get_submodule(slot)))
    for mine, theirs in zip(results(module, kind, leaves), expected, strict=True):
        assert_close(mine, theirs)


@slots
@pytest.mark.parametrize("wrapper", ["bare", "checkpoint"])
def test_resetting_draws_what_it_draws_without_wrappers(kind: str, slot: str, wrapper: str) -> None:
    plain, wrapped = make(kind), make(kind)
    wrapped.set_submodule(slot, WRAPPERS[wrapper](wrapped.get_submodule(slot)))
    for module in (plain, wrapped):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 7.0)
        torch.manual_seed(1)
        module.reset_parameters()
    for mine, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not (mine == 7.0).any()


@slots
def test_another_module_in_a_slot_is_reset_by_its_own_rule(kind: str, slot: str) -> None:
    module, other = make(kind), nn.LayerNorm(4)
    module.set_submodule(slot, other)
    nn.init.constant_(other.weight, 7.0)
    module.reset_parameters()
    assert torch.equal(other.weight, torch.ones(4))


@slots
def test_resetting_leaves_a_layer_alone_that_a_wrapper_hides(kind: str, slot: str) -> None:
    module = make(kind)
    layer = module.get_submodule(slot)
    module.set_submodule(slot, WRAPPERS["hidden"](layer))
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7.0)
    module.reset_parameters()
    assert all((parameter == 7.0).all() for parameter in layer.parameters())


@pytest.mark.parametrize("kind", MODULES)
def test_weights_that_offloading_keeps_on_another_device_are_not_checked(kind: str) -> None:
    module, inputs = make(kind), MODULES[kind][2]
    expected = module(*inputs)[0]

    def offload(layer: nn.Module) -> None:
        loaded, call = dict(layer.named_parameters()), layer.forward
        layer.to("meta")

        def forward(x: Tensor) -> Tensor:
            unloaded = dict(layer._parameters)
            layer._parameters.update(loaded)
            output = call(x)
            layer._parameters.update(unloaded)
            return output

        layer.forward = forward

    for layer in [each for each in module.modules() if isinstance(each, nn.Linear | nn.Conv2d)]:
        offload(layer)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert_close(module(*inputs)[0], expected)
