"""Cross-scale experts, the loop: which of them run, on which samples, with which gradients and statistics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit import CrossScaleExpert, CrossScaleExperts, HardRouter, SparseMoE, plan_dispatch, plan_expert_choice
from tests.oracles import assert_close
from tests.strategies import few, routed

CHANNELS, SIZES, DIM = (3, 4), ((4, 4), (2, 3)), 4


def make_experts(num_experts: int = 3, **options) -> CrossScaleExperts:
    options = {"depth": 2, "dtype": torch.float64} | options
    experts = CrossScaleExperts(CHANNELS, DIM, num_experts, **options)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


def make_maps(batch: int, sizes=SIZES, dtype=torch.float64, **options) -> list[Tensor]:
    return [torch.randn(batch, c, *size, dtype=dtype, **options) for c, size in zip(CHANNELS, sizes, strict=True)]


def ones(batch: int) -> Tensor:
    return torch.ones(batch, 1, dtype=torch.float64)


def plan_of(*ids: int, num_experts: int = 3, kept: list[bool] | None = None):
    mask = None if kept is None else torch.tensor(kept).unsqueeze(1)
    return plan_dispatch(torch.tensor(ids, dtype=torch.int64).unsqueeze(1), num_experts, kept=mask)


@few
@given(routed(max_tokens=5))
def test_grouping_is_the_loop_over_samples_in_eval(case) -> None:
    torch.manual_seed(case.seed)
    experts = make_experts(case.num_experts, depth=1, norm="group").eval()
    maps = make_maps(case.expert_ids.shape[0])
    gates = torch.randn(*case.expert_ids.shape, dtype=torch.float64)
    out = experts(maps, plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept), gates)
    expected = torch.zeros(len(gates), DIM, 2, 3, dtype=torch.float64)
    for b, k in case.kept.nonzero().tolist():
        expected[b] += gates[b, k] * experts.experts[case.expert_ids[b, k]]([x[b : b + 1] for x in maps])[0]
    assert_close(out, expected)


def test_one_expert_is_attention_and_then_convolutions() -> None:
    for norm in ("batch", "group"):
        expert = make_experts(1, norm=norm, kernel_size=5).experts[0]
        maps = make_maps(3)
        x = expert.attention(maps).output
        for convolution, module in zip(expert.convolutions, expert.norms, strict=True):
            x = F.relu(module(F.conv2d(x, convolution.weight, padding=2)))
        assert_close(expert(maps), x)


@few
@given(routed(max_tokens=6))
def test_permuting_samples_permutes_outputs(case) -> None:
    torch.manual_seed(case.seed)
    experts = make_experts(case.num_experts, depth=1)  # in training: statistics of a group do not depend on the order
    batch = case.expert_ids.shape[0]
    maps, gates = make_maps(batch), torch.rand(*case.expert_ids.shape, dtype=torch.float64)
    order = torch.randperm(batch)
    out = experts(maps, plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept), gates)
    plan = plan_dispatch(case.expert_ids[order], case.num_experts, kept=case.kept[order])
    assert_close(experts([x[order] for x in maps], plan, gates[order]), out[order])


def test_copies_of_one_expert_are_one_expert() -> None:
    experts = make_experts(3).eval()
    for expert in experts.experts:
        expert.load_state_dict(experts.experts[0].state_dict())
    maps = make_maps(6)
    out = experts(maps, plan_of(2, 0, 1, 0, 2, 2), ones(6))
    assert_close(out, experts.experts[0](maps))
    assert_close(experts.run_all(maps), out.unsqueeze(1).expand(-1, 3, -1, -1, -1))


def test_only_experts_with_samples_are_touched() -> None:
    experts, maps = make_experts(), make_maps(4, requires_grad=True)
    seen: dict[int, int] = {}
    for number, expert in enumerate(experts.experts):
        expert.register_forward_hook(lambda module, maps, out, number=number: seen.update({number: len(out)}))
    experts(maps, plan_of(2, 0, 2, 2), ones(4)).square().sum().backward()
    assert seen == {0: 1, 2: 3}
    used = [any(p.grad is not None for p in expert.parameters()) for expert in experts.experts]
    assert used == [True, False, True]
    assert all(p.grad.any() for number in (0, 2) for p in experts.experts[number].convolutions.parameters())
    tracked = [expert.norms[0].num_batches_tracked.item() for expert in experts.experts]
    assert tracked == [1, 0, 1]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradcheck(norm) -> None:
    experts = make_experts(2, depth=1, norm=norm)
    maps, gates = make_maps(3, ((2, 2), (1, 2)), requires_grad=True), ones(3).mul(0.7).requires_grad_()
    plan = plan_of(1, 0, 1, num_experts=2)
    names = [name for name, _ in experts.named_parameters()]

    def call(first: Tensor, second: Tensor, gates: Tensor, *values: Tensor):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(experts, parameters, ([first, second], plan, gates))

    assert torch.autograd.gradcheck(call, (*maps, gates, *experts.parameters()), fast_mode=True)


def test_batch_norm_takes_the_samples_of_its_own_expert() -> None:
    experts, maps = make_experts(2, depth=1), make_maps(5)
    mine = [1, 3, 4]
    own = [x[mine] for x in maps]
    values = experts.experts[1].convolutions[0](experts.experts[1].attention(own).output)
    experts(maps, plan_of(0, 1, 0, 1, 1, num_experts=2), ones(5))
    norm = experts.experts[1].norms[0]
    assert_close(norm.running_mean, 0.1 * values.mean((0, 2, 3)))
    assert_close(norm.running_var, 0.9 + 0.1 * values.var((0, 2, 3)))


def test_batch_norm_of_one_sample_takes_its_locations_and_of_one_value_the_running_statistics() -> None:
    experts = make_experts(2, depth=1)
    out = experts(make_maps(1), plan_of(0, num_experts=2), ones(1))
    assert experts.experts[0].norms[0].num_batches_tracked == 1
    assert out.any()
    experts = make_experts(2, depth=1)
    norm = experts.experts[1].norms[0]
    norm.running_mean.normal_()
    kept = norm.running_mean.clone()
    single = make_maps(1, ((2, 2), (1, 1)))
    output = experts(single, plan_of(1, num_experts=2), ones(1))
    assert torch.equal(norm.running_mean, kept)
    assert norm.num_batches_tracked == 0
    assert_close(output, experts.eval()(single, plan_of(1, num_experts=2), ones(1)))


def test_group_norm_takes_a_single_value_too() -> None:
    experts = make_experts(1, depth=1, norm="group", groups=DIM)
    single = make_maps(1, ((2, 2), (1, 1)))
    bias = experts.experts[0].norms[0].bias.relu().view(1, DIM, 1, 1)
    assert_close(experts(single, plan_of(0, num_experts=1), ones(1)), bias)


@pytest.mark.parametrize("batching", ["loop", "fixed"])
def test_samples_without_an_expert_and_no_samples(batching) -> None:
    experts = make_experts(batching=batching)
    maps = make_maps(3)
    maps[0][1] = torch.nan
    plan = plan_of(2, 0, 2, kept=[True, False, True])
    gates = ones(3).requires_grad_()
    out = experts(maps, plan, gates)
    out.sum().backward()
    assert not out[1].any()
    assert out[0].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in experts.parameters())
    assert gates.grad[1] == 0
    marked = experts(maps, plan, torch.tensor([[1.0], [torch.nan], [1.0]], dtype=torch.float64))
    assert marked[1].isnan().all()
    assert marked[[0, 2]].isfinite().all()
    unassigned = experts(maps, plan_of(0, 0, 0, kept=[False] * 3), ones(3))
    assert torch.equal(unassigned, torch.zeros(3, DIM, 2, 3, dtype=torch.float64))
    empty = [x[:0] for x in maps]
    assert experts(empty, plan_of(), ones(0)).shape == (0, DIM, 2, 3)
    assert experts.scale_weights(empty, plan_of()).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("batching", ["loop", "fixed"])
def test_scale_weights_are_those_of_the_own_expert(batching) -> None:
    experts, maps = make_experts(batching=batching), make_maps(4)
    plan = plan_of(2, 0, 1, 2, kept=[True, True, False, True])
    weights = experts.scale_weights(maps, plan)
    for b, e in ((0, 2), (1, 0), (3, 2)):
        one = experts.experts[e].attention([x[b : b + 1] for x in maps], need_weights=True)
        assert_close(weights[b], one.weights[0])
    assert not weights[2].any()


def test_six_experts_cost_what_one_costs_and_all_of_them_six_times() -> None:
    maps, plan = make_maps(6), plan_of(5, 3, 0, 1, 4, 2, num_experts=6)
    one, six = make_experts(1), make_experts(6)

    def flops(function, *arguments) -> int:
        with FlopCounterMode(display=False) as counter:
            function(*arguments)
        return counter.get_total_flops()

    single = flops(one, maps, plan_of(*[0] * 6, num_experts=1), ones(6))
    assert single > 0
    assert flops(six, maps, plan, ones(6)) == single
    assert flops(six, maps, plan_of(*[4] * 6, num_experts=6), ones(6)) == single
    assert flops(six.run_all, maps) == 6 * single
    six.batching = "fixed"
    assert flops(six, maps, plan, ones(6)) == single


def test_expert_choice_and_channels_last() -> None:
    experts = make_experts(2).eval()
    maps, gates = make_maps(3), torch.tensor([[0.5, 2.0], [3.0, 9.0]], dtype=torch.float64)
    plan = plan_expert_choice(torch.tensor([[0, 1], [1, 2]]), 3, kept=torch.tensor([[True, True], [True, False]]))
    out = experts(maps, plan, gates)
    both = experts.run_all(maps)
    assert_close(out, torch.stack([0.5 * both[0, 0], 2 * both[1, 0] + 3 * both[1, 1], 0 * both[2, 0]]))
    last = experts.to(memory_format=torch.channels_last)
    chosen = last([x.to(memory_format=torch.channels_last) for x in maps], plan_of(1, 0, 1, num_experts=2), ones(3))
    assert chosen.is_contiguous(memory_format=torch.channels_last)
    assert_close(chosen, both[torch.arange(3), torch.tensor([1, 0, 1])])


def test_meta_device_reset_and_repr() -> None:
    experts = CrossScaleExperts(CHANNELS, DIM, 3, norm="group", device="meta", dtype=torch.float32)
    router = HardRouter(5, 3, device="meta")
    meta = [x.to("meta") for x in make_maps(2, dtype=torch.float32)]
    assert SparseMoE(router, experts)(meta, router_input=torch.randn(2, 5, device="meta")).output.is_meta
    plan = plan_dispatch(torch.zeros(2, 1, dtype=torch.int64, device="meta"), 3)
    assert experts.scale_weights(meta, plan).is_meta
    experts.to_empty(device="cpu").reset_parameters()
    assert all(parameter.isfinite().all() for parameter in experts.parameters())
    assert experts.experts[0].norms[0].num_groups == 4
    assert "num_experts=3, batching='auto'" in repr(experts)


def test_options_out_of_range() -> None:
    for match, options in {
        "depth must be at least 1, got 0": {"depth": 0},
        "norm must be one of 'batch', 'group', got 'layer'": {"norm": "layer"},
        "groups must divide dim=4, got 3": {"norm": "group", "groups": 3},
        "groups must divide dim=4, got 0": {"norm": "group", "groups": 0},
        "groups=2 is for norm='group', got norm='batch': leave it out": {"groups": 2},
        "kernel_size must be odd and at least 1, got 2": {"kernel_size": 2},
        "batching must be one of 'auto', 'loop', 'fixed', got 'eager'": {"batching": "eager"},
        "align_to must be the index of one of the 2 maps, got 5": {"align_to": 5},
    }.items():
        with pytest.raises(ValueError, match=match):
            CrossScaleExperts(CHANNELS, DIM, 2, **options)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        CrossScaleExperts(CHANNELS, DIM, 0)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        CrossScaleExpert(CHANNELS, 0)


def test_inputs_that_do_not_fit() -> None:
    experts, maps, plan = make_experts(), make_maps(2), plan_of(0, 1)
    with pytest.raises(ValueError, match=r"maps must be a sequence of 2 feature maps, got one tensor"):
        experts(maps[0], plan, ones(2))
    with pytest.raises(ValueError, match=r"maps\[1\] must have 4 channels"):
        experts.run_all([maps[0], maps[0]])
    with pytest.raises(ValueError, match="plan must be for 3 experts, got one for 2"):
        experts(maps, plan_of(0, 1, num_experts=2), ones(2))
    with pytest.raises(ValueError, match="x must have the plan's 1 tokens"):
        experts(maps, plan_of(0), ones(1))
    with pytest.raises(ValueError, match=r"gates must have one value per slot, \(2, 1\)"):
        experts(maps, plan, ones(3))
    two = plan_dispatch(torch.tensor([[0, 1], [1, 2]]), 3)
    with pytest.raises(ValueError, match="plan must have one slot per sample for scale_weights, got 4 slots for 2"):
        experts.scale_weights(maps, two)
    with pytest.raises(ValueError, match="plan must have one slot per sample"):
        experts.scale_weights(maps, plan_expert_choice(torch.tensor([[0], [1], [1]]), 2))


@pytest.mark.parametrize("batching", ["loop", "fixed"])
@pytest.mark.parametrize(("scales", "align_to"), [((0,), 0), ((1,), -1), ((0, 1), 1)])
def test_experts_that_read_some_scales_are_experts_of_a_smaller_pyramid(batching, scales, align_to) -> None:
    experts = make_experts(scales=scales, align_to=align_to, batching=batching).eval()
    smaller = CrossScaleExperts(
        [CHANNELS[scale] for scale in scales], DIM, 3, depth=2, align_to=scales.index(align_to % 2), dtype=torch.float64
    ).eval()
    smaller.load_state_dict(experts.state_dict())
    maps, plan = make_maps(4, requires_grad=True), plan_of(2, 0, 2, 2)
    read = [maps[scale] for scale in scales]
    assert_close(experts(maps, plan, ones(4)), smaller(read, plan, ones(4)))
    assert_close(experts.scale_weights(maps, plan), smaller.scale_weights(read, plan))
    assert_close(experts.run_all(maps), smaller.run_all(read))
    experts(maps, plan, ones(4)).sum().backward()
    assert [x.grad is not None for x in maps] == [scale in scales for scale in (0, 1)]
    assert ("scales" in repr(experts)) == (len(scales) < 2)


def test_rows_without_an_expert_have_the_size_of_the_scale_that_is_read() -> None:
    experts, maps = make_experts(scales=(1,), align_to=1), make_maps(2)
    assert experts(maps, plan_of(0, 1, kept=[False, False]), ones(2)).shape == (2, DIM, 2, 3)


def test_scales_that_are_none() -> None:
    for match, options in {
        r"scales must be ascending indices of the 2 maps, at least one, got \(\)": {"scales": ()},
        r"scales must be ascending indices of the 2 maps, at least one, got \(1, 0\)": {"scales": (1, 0)},
        r"scales must be ascending indices of the 2 maps, at least one, got \(0, 2\)": {"scales": (0, 2)},
        r"scales must be ascending indices of the 2 maps, at least one, got \(-1,\)": {"scales": (-1,)},
        r"align_to must be one of scales=\(0,\), got 1": {"scales": (0,)},
        "align_to must be the index of one of the 2 maps, got 3": {"scales": (0,), "align_to": 3},
    }.items():
        with pytest.raises(ValueError, match=match):
            CrossScaleExperts(CHANNELS, DIM, 2, **options)
