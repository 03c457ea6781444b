"""Cross-scale experts with static shapes: the numbers of the loop, in one graph."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import CrossScaleExperts, HardRouter, SparseMoE, plan_dispatch
from tests.oracles import TOLERANCE, assert_close
from tests.strategies import few, routed

CHANNELS, SIZES, DIM = (3, 4), ((4, 4), (2, 3)), 4


def make_experts(num_experts: int, **options) -> CrossScaleExperts:
    experts = CrossScaleExperts(CHANNELS, DIM, num_experts, **({"depth": 2} | options))
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in experts.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    return experts


def make_maps(batch: int, sizes=SIZES, dtype=torch.float32, **options) -> list[Tensor]:
    return [torch.randn(batch, c, *size, dtype=dtype, **options) for c, size in zip(CHANNELS, sizes, strict=True)]


def results(experts: CrossScaleExperts, maps, plan, gates) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """Output and all gradients; and the buffers after."""
    experts.zero_grad()
    leaves = [x.detach().requires_grad_() for x in (*maps, gates)]
    out = experts(leaves[:-1], plan, leaves[-1])
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    gradients = [leaf.grad for leaf in leaves] + [p.grad for p in experts.parameters()]
    return [out.detach(), *gradients], dict(experts.named_buffers())


def assert_same(loop: CrossScaleExperts, maps, plan, gates) -> None:
    fixed = copy.deepcopy(loop)
    loop.batching, fixed.batching = "loop", "fixed"
    expected, expected_buffers = results(loop, maps, plan, gates)
    figures, buffers = results(fixed, maps, plan, gates)
    for mine, theirs in zip(figures, expected, strict=True):
        if mine is None or theirs is None:  # an expert without samples: no gradient in the loop, zeros here
            assert all(g is None or not g.any() for g in (mine, theirs))
        else:
            assert_close(mine, theirs)
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected_buffers[name], msg=name)


@few
@given(routed(max_tokens=5), st.sampled_from(["batch", "group"]), st.booleans(), st.sampled_from([None, 0]))
def test_outputs_gradients_and_buffers_are_those_of_the_loop(case, norm, training, hidden_dim) -> None:
    torch.manual_seed(case.seed)
    experts = make_experts(case.num_experts, norm=norm, hidden_dim=hidden_dim, dtype=torch.float64).train(training)
    maps = make_maps(case.expert_ids.shape[0], dtype=torch.float64)
    gates = torch.rand(*case.expert_ids.shape, dtype=torch.float64)
    assert_same(experts, maps, plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept), gates)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_a_single_value_per_channel_and_an_expert_in_eval_mode(seed) -> None:
    torch.manual_seed(seed)
    experts = make_experts(3, dtype=torch.float64)
    experts.experts[2].eval()
    plan = plan_dispatch(torch.tensor([[0], [1], [0], [2], [2]]), 3)
    assert_same(experts, make_maps(5, ((2, 2), (1, 1)), torch.float64), plan, torch.rand(5, 1).double())


def test_infinities_of_one_expert_reach_no_other() -> None:
    experts = make_experts(2, batching="fixed", dtype=torch.float64)
    maps = make_maps(3, dtype=torch.float64)
    maps[1][0] = torch.inf
    experts(maps, plan_dispatch(torch.tensor([[1], [0], [0]]), 2), torch.ones(3, 1).double())
    assert experts.experts[0].norms[0].running_mean.isfinite().all()
    assert not experts.experts[1].norms[0].running_mean.isfinite().all()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_autocast_gives_the_dtype_of_the_loop_and_stays_near_it(norm) -> None:
    experts = make_experts(2, norm=norm)
    nn.init.ones_(experts.experts[0].norms[0].weight)
    maps, plan = make_maps(4), plan_dispatch(torch.tensor([[1], [0], [0], [1]]), 2)
    outputs = []
    for batching in ("loop", "fixed"):
        experts.batching = batching
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append(experts(maps, plan, torch.ones(4, 1)))
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0.1, atol=0.1)


def make_layer(**options) -> SparseMoE:
    layer = SparseMoE(HardRouter(5, 3), make_experts(3, depth=1, **options))
    nn.init.normal_(layer.router.gate.layers[0].weight)
    return layer


@pytest.mark.slow
def test_a_layer_compiles_to_one_graph_in_training() -> None:
    torch._dynamo.reset()
    eager, maps, context = make_layer(), make_maps(5), torch.randn(5, 5)
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    expected = eager(maps, router_input=context)
    output = function(maps, router_input=context)
    assert_close(output.output, expected.output)
    assert torch.equal(output.stats.tokens_per_expert, expected.stats.tokens_per_expert)
    expected.output.square().sum().backward()
    output.output.square().sum().backward()
    for mine, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert_close(mine.grad, torch.zeros_like(mine) if theirs.grad is None else theirs.grad)
    for mine, theirs in zip(compiled.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_layer_exports_with_a_dynamic_batch(norm) -> None:
    layer = make_layer(norm=norm).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        layer,
        (make_maps(3),),
        {"router_input": torch.randn(3, 5)},
        dynamic_shapes={"x": [{0: batch}, {0: batch}], "router_input": {0: batch}},
    ).module()
    for count in (1, 6):
        maps, context = make_maps(count), torch.randn(count, 5)
        output, expected = program(maps, router_input=context), layer(maps, router_input=context)
        torch.testing.assert_close(output.output, expected.output, rtol=TOLERANCE[torch.float32], atol=1e-5)
        assert torch.equal(output.stats.tokens_per_expert, expected.stats.tokens_per_expert)
