"""Where rows go among the slots of a placement: laws that need no process group."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit.distributed import ExpertPlacement
from moekit.distributed.slots import Slots
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch

CPU = torch.device("cpu")


@st.composite
def placements(draw: st.DrawFn, ranks: int, experts: int) -> ExpertPlacement:
    """Any placement: every expert somewhere, never twice on a rank."""
    slots = draw(st.integers(-(-experts // ranks), experts))
    order = draw(st.permutations(range(experts)))
    held = [list(order[rank::ranks]) for rank in range(ranks)]
    for own in held:
        others = draw(st.permutations([expert for expert in range(experts) if expert not in own]))
        own.extend(others[: slots - len(own)])
    return ExpertPlacement(tuple(tuple(draw(st.permutations(own))) for own in held))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ExpertPlacement, int, DispatchPlan]:
    ranks, experts = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    placement = draw(placements(ranks, experts))
    node = draw(st.sampled_from([size for size in (1, 2, 3, 6) if ranks % size == 0]))
    tokens, top_k = draw(st.integers(0, 20)), draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ids = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    kept = torch.rand(tokens, top_k, generator=generator) > 0.3 if draw(st.booleans()) else None
    return placement, node, plan_dispatch(ids, experts, kept=kept)


@given(cases())
def test_a_plan_of_slots_is_that_of_experts_in_another_order(case) -> None:
    placement, node, plan = case
    expert_of_slot = [expert for experts in placement.experts_of_rank for expert in experts]
    for rank in range(placement.num_ranks):
        placed = Slots(placement, rank, node).placed(plan)
        assert placed.num_experts == placement.num_slots
        assert placed.slot_of_row.sort().values.tolist() == list(range(len(plan.slot_of_row)))
        assert torch.equal(placed.slot_of_row[placed.row_of_slot.flatten()], torch.arange(len(plan.slot_of_row)))
        assert torch.equal(placed.offsets[-1], plan.offsets[-1])
        for slot, expert in enumerate(expert_of_slot):
            rows = placed.slot_of_row[placed.offsets[slot] : placed.offsets[slot + 1]].tolist()
            theirs = plan.slot_of_row[plan.offsets[expert] : plan.offsets[expert + 1]].tolist()
            assert rows == [each for each in theirs if each in rows]  # a part, in the same order
        x = torch.randn(plan.num_tokens, 3)
        gates = torch.rand(plan.row_of_slot.shape)
        assert torch.equal(combine(dispatch(x, placed), placed, gates), combine(dispatch(x, plan), plan, gates))


@given(cases())
def test_ranks_with_equal_rows_give_replicas_equal_shares(case) -> None:
    placement, node, _ = case
    replicas, ranks = placement.replicas, placement.num_ranks
    turns = [Slots(placement, rank, node).indices(CPU).turns for rank in range(ranks)]
    slot_of = [
        {expert: rank * placement.slots_per_rank + place for place, expert in enumerate(experts)}
        for rank, experts in enumerate(placement.experts_of_rank)
    ]
    for expert, count in enumerate(replicas):
        taken = [turns[rank][expert, :count].tolist() for rank in range(ranks)]
        every = sorted(slot for each in taken for slot in each)
        held = sorted(slots[expert] for slots in slot_of if expert in slots)
        assert every == sorted(held * ranks)
        for rank, own in enumerate(taken):
            if expert in slot_of[rank]:
                assert own == [slot_of[rank][expert]] * count


def test_replicas_of_the_node_come_first() -> None:
    placement = ExpertPlacement(((0, 1), (2, 3), (0, 4), (5, 6)))
    for rank, slot in enumerate((0, 0, 4, 4)):
        assert Slots(placement, rank, 2).indices(CPU).turns[0].tolist() == [slot, slot]
    assert Slots(placement, 1, 4).indices(CPU).turns[0].tolist() == [0, 4]  # no nodes: both in turn


def test_ranks_begin_at_different_replicas() -> None:
    """So that what does not divide by the number of replicas does not always go to the first."""
    placement = ExpertPlacement(((0, 1), (0, 2), (3, 4), (5, 6)))
    plan = plan_dispatch(torch.zeros(1, 1, dtype=torch.int64), 7)
    chosen = [int(Slots(placement, rank, 4).placed(plan).tokens_per_expert.argmax()) for rank in (2, 3)]
    assert sorted(chosen) == [0, 2]
