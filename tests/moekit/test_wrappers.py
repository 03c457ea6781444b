"""Modules that replace the parts of a layer and call what they replace."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from moekit import (
    FFN,
    CrossScaleExperts,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    ModuleExperts,
    SoftMoE,
    SparseMoE,
    TopKRouter,
)
from tests.moekit.wrappers import WRAPPERS, Bare
from tests.oracles import assert_close

DIM, EXPERTS, CHANNELS = 6, 4, (3, 4)


of_torch = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def make_layer(**options) -> SparseMoE:
    router = TopKRouter(DIM, EXPERTS, 2, gate_hidden_dim=DIM, selection_bias=True)
    return randomised(SparseMoE(router, FFNExperts(DIM, 5, EXPERTS), shared=FFN(DIM, 5), **options))


def figures(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Output and gradients."""
    loss = (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()
    return [output.detach(), *torch.autograd.grad(loss, leaves)]


def assert_same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b)


@wrappers
@pytest.mark.parametrize(
    "slot", ["router", "experts", "shared", "router.gate", "router.gate.layers.0", "router.gate.layers.1"]
)
def test_a_layer_calls_whatever_stands_in_a_slot(slot, wrapper):
    moe, x = make_layer(capacity_factor=1.0), torch.randn(3, 5, DIM, requires_grad=True)
    leaves = [x, *moe.parameters()]
    mask = torch.rand(3, 5) > 0.2
    expected = [figures(moe(x).output, leaves), figures(moe(x, mask=mask).output, leaves)]
    stats = moe(x).stats
    moe.set_submodule(slot, WRAPPERS[wrapper](moe.get_submodule(slot)))
    assert_same(figures(moe(x).output, leaves), expected[0])
    assert_same(figures(moe(x, mask=mask).output, leaves), expected[1])
    assert all(torch.equal(a, b) for a, b in zip(moe(x).stats, stats, strict=True))
    assert torch.equal(moe(x, routing=moe.route(x)).output, moe(x).output)
    other = copy.deepcopy(moe)
    assert torch.equal(other(x).output, moe(x).output)


@wrappers
def test_a_wrapped_router_by_id_is_still_given_ids(wrapper):
    moe = SparseMoE(HashRouter(EXPERTS, 20), FFNExperts(DIM, 5, EXPERTS))
    x, ids = torch.randn(7, DIM), torch.arange(7)
    expected = moe(x, router_input=ids).output
    moe.router = WRAPPERS[wrapper](moe.router)
    assert torch.equal(moe(x, router_input=ids).output, expected)
    with pytest.raises(ValueError, match="router_input must be given"):
        moe(x)


@wrappers
def test_wrapped_expert_choice_keeps_its_rules(wrapper):
    moe, x = SparseMoE(ExpertChoiceRouter(DIM, EXPERTS), FFNExperts(DIM, 5, EXPERTS)), torch.randn(2, 4, DIM)
    expected = moe(x).output
    moe.router = WRAPPERS[wrapper](moe.router)
    assert torch.equal(moe(x).output, expected)
    with pytest.raises(ValueError, match=r"one row per token of x, .* for expert choice"):
        moe(x, router_input=torch.randn(2, DIM))
    with pytest.raises(ValueError, match="capacity_factor of an expert-choice layer belongs to its router"):
        moe.capacity_factor = 1.0


@wrappers
def test_a_wrapped_gate_of_every_router_is_called(wrapper):
    x = torch.randn(9, DIM)
    for router in (
        TopKRouter(DIM, EXPERTS, 2, noisy=True).eval(),
        HardRouter(DIM, EXPERTS, gate_hidden_dim=DIM),
        ExpertChoiceRouter(DIM, EXPERTS, gate_hidden_dim=DIM),
    ):
        randomised(router)
        expected = router(x)
        router.gate = WRAPPERS[wrapper](router.gate)
        routing = router(x)
        assert torch.equal(routing.gates, expected.gates)
        assert torch.equal(routing.logits, expected.logits)


def test_a_wrapped_noise_gate_is_called():
    router, x = randomised(TopKRouter(DIM, EXPERTS, 2, noisy=True)), torch.randn(9, DIM)
    torch.manual_seed(1)
    expected = router(x).load_probs
    router.noise_gate = Bare(router.noise_gate)
    torch.manual_seed(1)
    assert torch.equal(router(x).load_probs, expected)


@wrappers
def test_a_bank_of_modules_calls_wrapped_experts(wrapper):
    experts = ModuleExperts([nn.Linear(DIM, DIM), nn.Identity(), nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh())])
    moe, x = SparseMoE(TopKRouter(DIM, 3, 2), randomised(experts)), torch.randn(9, DIM, requires_grad=True)
    leaves = [x, *experts.experts[2].parameters()]
    expected = figures(moe(x).output, leaves)
    for index in range(3):
        experts.experts[index] = WRAPPERS[wrapper](experts.experts[index])
    assert_same(figures(moe(x).output, leaves), expected)


@wrappers
@pytest.mark.parametrize("slots_per_expert", [1, 2])
def test_a_soft_layer_calls_wrapped_experts(wrapper, slots_per_expert):
    moe = randomised(SoftMoE(DIM, FFNExperts(DIM, 5, EXPERTS), slots_per_expert=slots_per_expert))
    x = torch.randn(2, 5, DIM, requires_grad=True)
    leaves = [x, *moe.parameters()]
    expected = figures(moe(x).output, leaves)
    moe.experts = WRAPPERS[wrapper](moe.experts)
    assert_same(figures(moe(x).output, leaves), expected)


def make_pyramid_layer(**options) -> tuple[SparseMoE, list[Tensor], Tensor]:
    moe = randomised(SparseMoE(HardRouter(5, 3), CrossScaleExperts(CHANNELS, 4, 3, depth=2, **options)))
    maps = [torch.randn(6, 3, 6, 6), torch.randn(6, 4, 3, 3)]
    return moe, maps, torch.randn(6, 5)


@wrappers
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    "slot",
    [
        "experts",
        "experts.experts.1",
        "experts.experts.1.attention.projections.0",
        "experts.experts.1.attention.heads.0",
        "experts.experts.1.convolutions.0",
        "experts.experts.1.norms.1",
    ],
)
def test_a_pyramid_layer_calls_wrapped_experts_and_layers(slot, norm, wrapper):
    moe, maps, context = make_pyramid_layer(norm=norm)
    routing = moe.route(maps, router_input=context)
    assert 1 in routing.expert_ids
    leaves = list(moe.experts.experts[1].parameters())
    expected = figures(moe(maps, routing=routing).output, leaves)
    moe.set_submodule(slot, WRAPPERS[wrapper](moe.get_submodule(slot)))
    assert_same(figures(moe(maps, routing=routing).output, leaves), expected)


def test_weights_of_scales_come_from_wrapped_experts():
    moe, maps, context = make_pyramid_layer()
    plan = moe.plan(moe.route(maps, router_input=context))
    expected = moe.experts.scale_weights(maps, plan)
    every = moe.eval().experts.run_all(maps)
    for index in range(3):
        moe.experts.experts[index] = checkpoint_wrapper(moe.experts.experts[index])
    assert torch.equal(moe.experts.scale_weights(maps, plan), expected)
    assert torch.equal(moe.experts.run_all(maps), every)


def test_a_single_value_per_channel_passes_a_wrapped_norm():
    for norm in ("batch", "group"):
        moe, _, context = make_pyramid_layer(norm=norm)
        maps = [torch.randn(1, 3, 2, 2), torch.randn(1, 4, 1, 1)]
        expected = moe(maps, router_input=context[:1]).output
        for expert in moe.experts.experts:
            expert.norms[0] = Bare(expert.norms[0])
        assert torch.equal(moe(maps, router_input=context[:1]).output, expected)


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("experts.experts.1", r"experts\[1\] must be the CrossScaleExpert"),
        ("experts.experts.2.attention", r"experts\[2\].attention must be the CrossScaleAttention"),
        ("experts.experts.0.attention.projections.1", r"experts\[0\].attention.projections\[1\] must be the Conv2d"),
        ("experts.experts.0.attention.heads.1", r"experts\[0\].attention.heads\[1\] must be the Sequential"),
        ("experts.experts.0.attention.heads.0.2", r"experts\[0\].attention.heads\[0\]\[2\] must be the Conv2d"),
        ("experts.experts.1.convolutions.1", r"experts\[1\].convolutions\[1\] must be the Conv2d"),
        ("experts.experts.1.norms.0", r"experts\[1\].norms\[0\] must be the BatchNorm or GroupNorm"),
    ],
)
def test_batching_that_reads_weights_refuses_wrappers(slot, name):
    moe, maps, context = make_pyramid_layer(batching="fixed")
    moe(maps, router_input=context)
    moe.set_submodule(slot, Bare(moe.get_submodule(slot)))
    with pytest.raises(
        ValueError, match=f'{name}.* that was built for batching="fixed".*, got Bare: use batching="loop"'
    ):
        moe(maps, router_input=context)
    with pytest.raises(ValueError, match=name):
        moe.experts.scale_weights(maps, moe.plan(moe.route(maps, router_input=context)))
    moe.experts.batching = "loop"
    moe(maps, router_input=context)


def test_batching_that_reads_weights_refuses_a_replaced_forward_and_takes_parametrised_weights():
    moe, maps, context = make_pyramid_layer(batching="fixed")
    moe.eval()
    nn.utils.parametrizations.weight_norm(moe.experts.experts[1].convolutions[0])
    output = moe(maps, router_input=context).output
    moe.experts.batching = "loop"
    assert_close(moe(maps, router_input=context).output, output)
    moe.experts.batching = "fixed"
    moe.experts.experts[1].convolutions[0].forward = lambda x: x
    with pytest.raises(ValueError, match=r"experts\[1\].convolutions\[0\] must be the Conv2d"):
        moe(maps, router_input=context)


def test_parametrised_weights_of_stacked_experts_are_used():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    moe, x = make_layer(), torch.randn(5, DIM)
    doubled = copy.deepcopy(moe)
    with torch.no_grad():
        doubled.experts.up_proj.mul_(2)
        doubled.router.gate.layers[0].weight.mul_(2)
    nn.utils.parametrize.register_parametrization(moe.experts, "up_proj", Doubled())
    nn.utils.parametrize.register_parametrization(moe.router.gate.layers[0], "weight", Doubled())
    assert torch.equal(moe(x).output, doubled(x).output)


def test_activation_checkpointing_of_every_linear_layer():
    moe, x = make_layer(), torch.randn(5, DIM, requires_grad=True)
    leaves = [x, *moe.parameters()]
    expected = figures(moe(x).output, leaves)
    apply_activation_checkpointing(moe, check_fn=lambda module: isinstance(module, nn.Linear))
    assert sum("Checkpoint" in type(module).__name__ for module in moe.modules()) == 4
    assert_same(figures(moe(x).output, leaves), expected)


@pytest.mark.parametrize("slot", ["router", "experts", "shared", "router.gate.layers.1"])
@of_torch
def test_a_layer_calls_a_compiled_part(slot):
    moe, x = make_layer(), torch.randn(5, DIM, requires_grad=True)
    leaves = [x, *moe.parameters()]
    expected = figures(moe(x).output, leaves)
    moe.set_submodule(slot, torch.compile(moe.get_submodule(slot), backend="eager", fullgraph=True))
    assert_same(figures(moe(x).output, leaves), expected)


@of_torch
def test_banks_call_compiled_modules():
    moe, maps, context = make_pyramid_layer()
    experts = ModuleExperts([nn.Linear(DIM, DIM), nn.Identity()])
    plain, x = SparseMoE(TopKRouter(DIM, 2, 1), experts), torch.randn(9, DIM)
    expected = moe(maps, router_input=context).output, plain(x).output
    moe.experts.experts[1].norms[0] = torch.compile(moe.experts.experts[1].norms[0], backend="eager")
    experts.experts[0] = torch.compile(experts.experts[0], backend="eager")
    assert_close(moe(maps, router_input=context).output, expected[0])
    assert_close(plain(x).output, expected[1])


@of_torch
def test_compiled_submodules_compile_again_as_a_part_of_the_whole():
    moe, x = make_layer(), torch.randn(5, DIM)
    expected = moe(x).output
    moe.router = torch.compile(moe.router, backend="aot_eager", fullgraph=True)
    moe.experts = torch.compile(moe.experts, backend="aot_eager", fullgraph=True)
    assert_close(moe(x).output, expected)
    assert_close(torch.compile(moe, backend="aot_eager", fullgraph=True)(x).output, expected)


@pytest.mark.parametrize("wrapper", ["bare", "checkpoint"])
def test_resetting_reaches_wrapped_parts(wrapper):
    wrap = WRAPPERS[wrapper]
    router = TopKRouter(DIM, EXPERTS, 2, gate_hidden_dim=5, gate_bias=True, selection_bias=True)
    noisy, hard = TopKRouter(DIM, EXPERTS, 2, noisy=True), HardRouter(DIM, EXPERTS, gate_bias=True)
    choice, dense = ExpertChoiceRouter(DIM, EXPERTS, gate_bias=True), FFN(DIM, 5, gated=True)
    pyramids = CrossScaleExperts(CHANNELS, 4, 2, depth=1)
    modules = (router, noisy, hard, choice, dense, pyramids)
    for module in modules:
        for parameter in module.parameters():
            nn.init.constant_(parameter, 7.0)
    router.gate.layers[1] = wrap(router.gate.layers[1])
    noisy.noise_gate, hard.gate, choice.gate = wrap(noisy.noise_gate), wrap(hard.gate), wrap(choice.gate)
    dense.up_proj = wrap(dense.up_proj)
    pyramids.experts[0] = wrap(pyramids.experts[0])
    pyramids.experts[1].convolutions[0] = wrap(pyramids.experts[1].convolutions[0])
    pyramids.experts[1].norms[0] = wrap(pyramids.experts[1].norms[0])
    for module in modules:
        module.reset_parameters()
        assert not any((parameter == 7.0).all() for parameter in module.parameters())


def test_the_selection_bias_of_a_wrapped_router_is_updated_through_the_router():
    moe, x = make_layer(), torch.randn(9, DIM)
    router = moe.router
    moe.router = Bare(router)
    before = moe(x)
    router.update_bias_(torch.tensor([0, 9, 9, 9]), rate=1e3)
    assert before.stats.tokens_per_expert[0] < moe(x).stats.tokens_per_expert[0] == 9
    moe.router = checkpoint_wrapper(router)
    moe.router.update_bias_(torch.tensor([99, 0, 0, 0]), rate=1e6)
    assert moe(x).stats.tokens_per_expert[0] == 0


def test_a_new_part_brings_its_own_attributes():
    moe, x = make_layer(), torch.randn(5, DIM)
    moe.router = HashRouter(EXPERTS, 20)
    assert moe(x, router_input=torch.arange(5)).output.shape == (5, DIM)
    moe.router = Bare(moe.router)
    moe.router = moe.router.inner
    assert moe(x, router_input=torch.arange(5)).output.shape == (5, DIM)
    moe.router = TopKRouter(DIM, EXPERTS, 1)
    moe.experts = FFNExperts(DIM, 3, EXPERTS)
    assert moe(x).stats.tokens_per_expert.sum() == 5
    moe.router, moe.experts = TopKRouter(DIM, 7, 1), FFNExperts(DIM, 3, 7)
    assert moe(x).stats.tokens_per_expert.shape == (7,)
