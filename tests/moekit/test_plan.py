"""Laws of plan, dispatch and combine, and the two drop policies held to loops over the queue."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit import combine, dispatch, plan_dispatch, plan_expert_choice
from tests.oracles import assert_close, naive_kept, naive_plan
from tests.strategies import few, routed


@few
@given(routed(), st.integers(0, 4))
def test_the_plan_is_a_stable_sort_by_expert(case, width):
    plan = plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept)
    rows = case.plan
    assert plan.slot_of_row.tolist() == rows.slot_of_row.tolist()
    assert plan.token_of_row.tolist() == rows.token_of_row.tolist()
    assert plan.offsets.tolist() == rows.offsets.tolist()
    assert plan.num_tokens == case.expert_ids.shape[0]


@few
@given(routed())
def test_dispatch_is_a_permutation_of_the_slots(case):
    plan = plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept)
    slots = torch.arange(case.expert_ids.numel())
    assert plan.slot_of_row.sort().values.equal(slots)
    assert plan.row_of_slot.flatten()[plan.slot_of_row].equal(slots)
    assert plan.slot_of_row[plan.row_of_slot.flatten()].equal(slots)
    assert plan.row_of_slot.shape == case.expert_ids.shape


@few
@given(routed())
def test_counts_add_up_to_the_kept_slots(case):
    plan = plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept)
    expected = case.expert_ids[case.kept].bincount(minlength=case.num_experts)
    assert plan.tokens_per_expert.equal(expected)
    assert plan.offsets.diff().equal(expected)
    assert plan.offsets[0] == 0
    assert not plan.dropped_per_expert.any()
    dropless = plan_dispatch(case.expert_ids, case.num_experts)
    assert dropless.tokens_per_expert.sum() == dropless.offsets[-1] == case.expert_ids.numel()


@few
@given(routed(), st.sampled_from([(), (3,), (2, 3)]))
def test_combine_after_dispatch_is_the_input_times_its_gates(case, token):
    torch.manual_seed(case.seed)
    tokens, top_k = case.expert_ids.shape
    x = torch.randn(tokens, *token, dtype=torch.float64)
    gates = torch.randn(tokens, top_k, dtype=torch.float64)
    plan = plan_dispatch(case.expert_ids, case.num_experts)
    weight = gates.sum(1).view(-1, *(1,) * len(token))
    assert_close(combine(dispatch(x, plan), plan, gates), weight * x)


@few
@given(routed())
def test_dispatch_copies_the_token_of_each_row(case):
    x = torch.arange(case.expert_ids.shape[0])
    plan = plan_dispatch(case.expert_ids, case.num_experts, kept=case.kept)
    assert dispatch(x, plan).equal(case.plan.token_of_row)


@few
@given(routed())
def test_the_order_of_tokens_does_not_matter(case):
    torch.manual_seed(case.seed)
    tokens, top_k = case.expert_ids.shape
    x = torch.randn(tokens, 3, dtype=torch.float64)
    gates = torch.randn(tokens, top_k, dtype=torch.float64)
    order = torch.randperm(tokens)

    def run(x, gates, ids):
        plan = plan_dispatch(ids, case.num_experts)
        scale = torch.zeros(len(plan.token_of_row), 1, dtype=torch.float64)
        for e in range(case.num_experts):
            scale[plan.offsets[e] : plan.offsets[e + 1]] = e + 1
        return combine(dispatch(x, plan) * scale, plan, gates)

    assert_close(run(x[order], gates[order], case.expert_ids[order]), run(x, gates, case.expert_ids)[order])


def _order(case, policy, gates):
    tokens, top_k = case.expert_ids.shape
    if policy == "position":
        return [(t, k) for k in range(top_k) for t in range(tokens)]
    slots = [(t, k) for t in range(tokens) for k in range(top_k)]
    return sorted(slots, key=lambda place: -gates[place].item())


@few
@given(routed(), st.integers(0, 5), st.sampled_from(["position", "gate"]), st.booleans())
def test_capacity_keeps_the_slots_that_the_queue_keeps(case, capacity, policy, as_tensor):
    torch.manual_seed(case.seed)
    gates = torch.rand(case.expert_ids.shape).mul(4).round()  # with ties
    order = [place for place in _order(case, policy, gates) if case.kept[place]]
    kept = naive_kept(case.expert_ids, case.num_experts, capacity, order)
    plan = plan_dispatch(
        case.expert_ids,
        case.num_experts,
        kept=case.kept,
        capacity=torch.tensor(capacity) if as_tensor else capacity,
        gates=gates,
        drop_policy=policy,
    )
    rows = naive_plan(case.expert_ids, case.num_experts, kept)
    assert plan.offsets.tolist() == rows.offsets.tolist()
    assert plan.slot_of_row[: plan.offsets[-1]].tolist() == rows.slot_of_row[: rows.offsets[-1]].tolist()
    assert (plan.offsets.diff() <= capacity).all()
    routed_slots = case.expert_ids[case.kept].bincount(minlength=case.num_experts)
    assert plan.tokens_per_expert.equal(routed_slots)
    assert plan.dropped_per_expert.equal((routed_slots - capacity).clamp(min=0))


def test_first_choices_keep_their_place_before_second_choices():
    ids = torch.tensor([[1, 0], [0, 1], [0, 1]])
    plan = plan_dispatch(ids, 2, capacity=2)
    assert plan.slot_of_row[: plan.offsets[1]].tolist() == [2, 4]  # not slot 1, a second choice that comes earlier
    assert plan.dropped_per_expert.tolist() == [1, 1]


def test_larger_gates_keep_their_place_and_nan_counts_as_zero():
    ids = torch.zeros(4, 1, dtype=torch.int64)
    gates = torch.tensor([[0.2], [torch.nan], [0.9], [0.5]], requires_grad=True)
    plan = plan_dispatch(ids, 1, capacity=3, gates=gates, drop_policy="gate")
    assert plan.slot_of_row[: plan.offsets[-1]].tolist() == [0, 2, 3]


@few
@given(routed(), st.sampled_from(["position", "gate"]))
def test_the_same_input_gives_the_same_plan(case, policy):
    gates = torch.ones(case.expert_ids.shape)
    first, second = (
        plan_dispatch(case.expert_ids, case.num_experts, capacity=2, gates=gates, drop_policy=policy) for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(first[:6], second[:6], strict=True))


@few
@given(
    st.integers(1, 4), st.integers(0, 3), st.integers(1, 5), st.sampled_from([None, 0.0, 0.5]), st.integers(0, 2**31)
)
def test_expert_choice_gives_each_expert_the_tokens_it_took(experts, capacity, tokens, drop_rate, seed):
    torch.manual_seed(seed)
    capacity = min(capacity, tokens)
    token_ids = torch.rand(experts, tokens).argsort(-1)[:, :capacity]
    kept = None if drop_rate is None else torch.rand(experts, capacity) >= drop_rate
    x = torch.randn(tokens, 2, dtype=torch.float64)
    gates = torch.randn(experts, capacity, dtype=torch.float64)
    plan = plan_expert_choice(token_ids, tokens, kept=kept)
    taken = torch.ones(experts, capacity, dtype=torch.bool) if kept is None else kept
    rows, expected = dispatch(x, plan).clone(), torch.zeros(tokens, 2, dtype=torch.float64)
    rows[plan.offsets[-1] :] = 0
    for e in range(experts):
        mine = slice(int(plan.offsets[e]), int(plan.offsets[e + 1]))
        assert plan.token_of_row[mine].tolist() == token_ids[e][taken[e]].tolist()
        rows[mine] *= e + 1
        for c in range(capacity):
            if taken[e, c]:
                expected[token_ids[e, c]] += gates[e, c] * (e + 1) * x[token_ids[e, c]]
    assert plan.row_of_slot is None
    assert plan.tokens_per_expert.equal(taken.sum(1))
    assert not plan.dropped_per_expert.any()
    assert plan.slot_of_row.sort().values.equal(torch.arange(experts * capacity))
    assert_close(combine(rows, plan, gates), expected)


def test_gradients_of_dispatch_and_combine():
    ids = torch.tensor([[0, 2], [2, 1], [1, 2]])
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    choice = plan_expert_choice(torch.tensor([[0, 2], [2, 1]]), 3, kept=torch.tensor([[True, True], [True, False]]))
    for plan, weights in ((plan_dispatch(ids, 3), gates), (choice, gates[:2])):
        assert torch.autograd.gradcheck(lambda x, g, p=plan: combine(dispatch(x, p), p, g), (x, weights))


def test_sums_are_taken_in_the_wider_dtype():
    plan = plan_dispatch(torch.arange(5).unsqueeze(0), 5)
    rows = torch.ones(5, 1, dtype=torch.bfloat16)
    gates = torch.tensor([[1.0, *[2.0**-9] * 4]])  # added up in bfloat16, each small gate would be lost
    out = combine(rows, plan, gates)
    assert out.dtype == torch.bfloat16
    assert out.item() == 1 + 2**-7


def test_errors():
    ids = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expert_ids must have shape \(T, K\), got shape \(3,\)"):
        plan_dispatch(ids[:, 0], 2)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        plan_dispatch(ids, 0)
    with pytest.raises(ValueError, match="drop_policy must be one of 'position', 'gate', got 'random'"):
        plan_dispatch(ids, 2, drop_policy="random")
    with pytest.raises(ValueError, match='drop_policy="gate" needs the gates, got gates=None'):
        plan_dispatch(ids, 2, capacity=1, drop_policy="gate")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ids: plan_dispatch(ids.float(), 3), "expert_ids must be of an integer dtype, got torch.float32"),
        (lambda ids: plan_dispatch(ids, 3, kept=torch.ones(2, 3, dtype=torch.bool)), r"kept must have shape \(2, 2\)"),
        (lambda ids: plan_dispatch(ids, 3, gates=torch.ones(3, 2)), "gates must have the shape of expert_ids"),
        (lambda ids: plan_dispatch(ids, 3, capacity=-1), "capacity must not be negative, got -1"),
        (lambda ids: plan_expert_choice(ids[0], 3), r"token_ids must have shape \(E, C\), got shape \(2,\)"),
        (lambda ids: plan_expert_choice(ids.double(), 3), "token_ids must be of an integer dtype"),
        (
            lambda ids: plan_expert_choice(ids, 3, kept=torch.ones(2, dtype=torch.bool)),
            "kept must have the shape of token_ids",
        ),
        (lambda ids: dispatch(torch.ones(5, 1), plan_dispatch(ids, 3)), "x must have the plan's 2 tokens"),
        (
            lambda ids: combine(torch.ones(3, 1), plan_dispatch(ids, 3), torch.ones(2, 2)),
            "rows must be the plan's 4 rows",
        ),
        (
            lambda ids: combine(torch.ones(4, 1), plan_dispatch(ids, 3), torch.ones(4, 1)),
            r"gates must have one value per slot, \(2, 2\), got shape \(4, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([[0, 1], [2, 0]]))
