"""Layers over feature pyramids: what they route, compute, count and refuse."""

import pytest
import torch
from torch import Tensor, nn

from moekit import CrossScaleExperts, FFNExperts, HardRouter, SparseMoE, TopKRouter
from moekit.losses import load_balancing_loss
from tests.oracles import assert_close

CHANNELS, SIZES = (3, 4), ((6, 6), (3, 3))


def make_maps(*lead: int) -> list[Tensor]:
    return [torch.randn(*lead, width, *size) for width, size in zip(CHANNELS, SIZES, strict=True)]


def make_layer(gradient: str = "scale", **options) -> SparseMoE:
    return SparseMoE(HardRouter(7, 3, gradient=gradient, gate_hidden_dim=5), make_experts(), **options)


def make_experts() -> CrossScaleExperts:
    experts = CrossScaleExperts(CHANNELS, 6, 3, depth=1)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return experts


@pytest.mark.parametrize("gradient", ["scale", "straight_through", "none"])
def test_each_sample_is_computed_by_the_expert_of_its_router_input(gradient) -> None:
    layer, maps, context = make_layer(gradient).eval(), make_maps(5), torch.randn(5, 7)
    routing = layer.route(maps, router_input=context)
    output, stats = layer(maps, router_input=context)
    every = layer.experts.run_all(maps)
    chosen = every[torch.arange(5), routing.expert_ids[:, 0]]
    scale = routing.probs.amax(1) if gradient == "scale" else torch.ones(5)
    assert_close(output, scale.view(5, 1, 1, 1) * chosen)
    assert torch.equal(stats.tokens_per_expert, routing.expert_ids.flatten().bincount(minlength=3))
    assert stats.num_tokens == 5
    load_balancing_loss(stats).backward()
    assert layer.router.gate.layers[0].weight.grad.any()


@pytest.mark.parametrize(("gradient", "reaches"), [("scale", True), ("straight_through", True), ("none", False)])
def test_which_gradient_of_the_task_reaches_the_router(gradient, reaches) -> None:
    layer, maps, context = make_layer(gradient), make_maps(5), torch.randn(5, 7)
    layer(maps, router_input=context).output.square().sum().backward()
    grad = layer.router.gate.layers[0].weight.grad
    assert (grad is not None and bool(grad.any())) == reaches


def test_more_leading_dimensions_masks_and_replay() -> None:
    layer, maps, context = make_layer().eval(), make_maps(2, 3), torch.randn(2, 7)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    output, stats = layer(maps, router_input=context, mask=mask)
    assert not output[0, 1].any()
    assert stats.num_tokens == 5
    flat = layer([x.flatten(0, 1) for x in maps], router_input=context.repeat_interleave(3, 0)).output
    assert_close(output[mask], flat.view(2, 3, 6, 3, 3)[mask])
    routing = layer.route(maps, router_input=context, mask=mask)
    assert_close(layer(tuple(maps), routing=routing, mask=mask).output, output)


def test_a_shared_module_gets_the_pyramid() -> None:
    class Coarse(nn.Module):
        def forward(self, maps):
            return maps[1].mean(1, keepdim=True)

    layer, maps, context = make_layer(shared=Coarse()).eval(), make_maps(2), torch.randn(2, 7)
    without = SparseMoE(layer.router, layer.experts)(maps, router_input=context).output
    assert_close(layer(maps, router_input=context).output, without + maps[1].mean(1, keepdim=True))


def test_inputs_that_do_not_fit() -> None:
    layer, maps, context = make_layer(), make_maps(2), torch.randn(2, 7)
    with pytest.raises(ValueError, match="x must be a sequence of feature maps for these experts, got one tensor"):
        layer(maps[0], router_input=context)
    with pytest.raises(ValueError, match="x must be one tensor for these experts, got a list"):
        SparseMoE(TopKRouter(4, 3, 1), FFNExperts(4, 6, 3))([torch.randn(2, 4)])
    with pytest.raises(ValueError, match="x must hold at least one feature map, got none"):
        layer([], router_input=context)
    with pytest.raises(ValueError, match=r"x\[1\] must have at least 3 dimensions, got shape \(3, 3\)"):
        layer([maps[0], maps[1][0, 0]], router_input=context)
    with pytest.raises(ValueError, match=r"x\[1\] must have the leading dimensions of x\[0\], \(2,\), got shape"):
        layer.route([maps[0], maps[1][:1]], router_input=context)
    with pytest.raises(ValueError, match=r"x\[0\] must be of a floating dtype"):
        layer([maps[0].long(), maps[1]], router_input=context)
    with pytest.raises(ValueError, match=r"x\[1\] must be on the device of x\[0\], cpu, got meta"):
        layer([maps[0], maps[1].to("meta")], router_input=context)
    with pytest.raises(ValueError, match="router_input must be given"):
        layer(maps)
    with pytest.raises(ValueError, match="maps must be 2 feature maps"):
        layer(maps[:1], router_input=context)
