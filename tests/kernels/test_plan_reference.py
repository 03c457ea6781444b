"""The plan by sorting, held to loops over the queue; which way is taken, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit_kernels.plan import plan_dispatch, plan_dispatch_reference, plan_expert_choice
from tests.oracles import naive_kept, naive_plan
from tests.strategies import few, routed

IDS = torch.tensor([[0, 1], [2, 0]])


def _queue(case, policy, gates):
    num_tokens, top_k = case.expert_ids.shape
    if policy == "position":
        return [(t, k) for k in range(top_k) for t in range(num_tokens)]
    slots = [(t, k) for t in range(num_tokens) for k in range(top_k)]
    return sorted(slots, key=lambda place: -gates[place].item())


@few
@given(routed(), st.sampled_from([None, 0, 1, 3]), st.sampled_from(["position", "gate"]))
def test_reference_is_a_loop_over_the_queue(case, capacity, policy):
    gates = torch.rand(case.expert_ids.shape, generator=torch.Generator().manual_seed(case.seed)).mul(4).round()
    actual = plan_dispatch_reference(
        case.expert_ids, case.num_experts, kept=case.kept, capacity=capacity, gates=gates, drop_policy=policy
    )
    order = [place for place in _queue(case, policy, gates) if case.kept[place]]
    unlimited = case.expert_ids.numel() + 1
    kept = naive_kept(case.expert_ids, case.num_experts, unlimited if capacity is None else capacity, order)
    rows = naive_plan(case.expert_ids, case.num_experts, kept)
    routed_slots = case.expert_ids[case.kept].bincount(minlength=case.num_experts)
    slots = torch.arange(case.expert_ids.numel())
    assert actual.slot_of_row.tolist() == rows.slot_of_row.tolist()
    assert actual.token_of_row.tolist() == rows.token_of_row.tolist()
    assert actual.offsets.tolist() == rows.offsets.tolist()
    assert actual.row_of_slot.shape == case.expert_ids.shape
    assert actual.row_of_slot.flatten()[actual.slot_of_row].equal(slots)
    assert actual.tokens_per_expert.equal(routed_slots)
    assert actual.dropped_per_expert.equal(routed_slots - actual.offsets.diff())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integers(dtype):
    ids = torch.randint(100, (40, 2))
    options = {"kept": torch.rand(40, 1) > 0.2, "capacity": 1}
    actual = plan_dispatch_reference(ids.to(dtype), 300, **options)
    expected = plan_dispatch_reference(ids, 300, **options)
    assert all(torch.equal(a, b) and a.dtype == torch.int64 for a, b in zip(actual[:6], expected[:6], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_ids": IDS[0]}, r"expert_ids must have shape \(T, K\), got shape \(2,\)"),
        ({"expert_ids": IDS.bool()}, "expert_ids must be of an integer dtype, got torch.bool"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"kept": torch.ones(2, 3, dtype=torch.bool)}, r"kept must have shape \(2, 2\) or \(2, 1\), got \(2, 3\)"),
        ({"gates": torch.ones(3, 2)}, r"gates must have the shape of expert_ids, \(2, 2\), got \(3, 2\)"),
        ({"capacity": -1}, "capacity must not be negative, got -1"),
        ({"capacity": 1, "drop_policy": "gate"}, 'drop_policy="gate" needs the gates, got gates=None'),
        ({"drop_policy": "random"}, "drop_policy must be one of 'position', 'gate', got 'random'"),
        ({"impl": "cuda"}, "impl must be one of 'auto', .*, got 'cuda'"),
        ({"impl": "triton"}, "impl=\"triton\" needs tensors on a GPU, got device 'cpu'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plan_dispatch(**{"expert_ids": IDS, "num_experts": 3, **options})


WRONG = torch.tensor([[0, 3], [-1, 1]])


@pytest.mark.parametrize(
    ("ids", "kept", "value"), [(WRONG, None, 3), (WRONG[1:], None, -1), (WRONG, torch.tensor([[False], [True]]), -1)]
)
def test_ids_out_of_range_are_an_error_on_cpu(ids, kept, value):
    with pytest.raises(ValueError, match=rf"expert_ids must be in \[0, 3\), the experts, got {value}: leave slots out"):
        plan_dispatch(ids, 3, kept=kept)


def test_ids_of_slots_that_are_left_out_may_be_anything():
    kept = torch.tensor([[True, False], [False, True]])
    plan = plan_dispatch(WRONG, 3, kept=kept)
    assert plan.offsets.tolist() == [0, 1, 2, 2]
    assert plan.slot_of_row[:2].tolist() == [0, 3]


def _left_out(ids):
    """Where values cannot be read: the offsets, and the rows of experts."""
    plan = plan_dispatch(ids, 3, capacity=1)
    return plan.offsets, plan.slot_of_row, plan.tokens_per_expert


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, under vmap
@pytest.mark.parametrize("way", ["compiled", "vmap"])
def test_elsewhere_slots_of_ids_out_of_range_are_left_out(way):
    if way == "compiled":
        torch._dynamo.reset()
        offsets, slots, counts = torch.compile(_left_out, fullgraph=True, backend="aot_eager")(WRONG)
    else:
        offsets, slots, counts = (t[0] for t in torch.vmap(_left_out)(WRONG[None]))
    assert offsets.tolist() == [0, 1, 2, 2]
    assert slots.tolist() == [0, 3, 1, 2]
    assert counts.tolist() == [1, 1, 0]


def test_token_ids_out_of_range_are_an_error_on_cpu():
    with pytest.raises(ValueError, match=r"token_ids must be in \[0, 2\), the tokens, got 3"):
        plan_expert_choice(WRONG[:1], 2)
