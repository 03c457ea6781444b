"""Laws of placements, which need no process group."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh

from moekit.distributed import ExpertPlacement, expert_placement
from tests.moekit.distributed.ranks import Ranks, division

LOADS = st.one_of(st.integers(0, 1000).map(float), st.floats(0, 1e6), st.sampled_from([0.0, 1.0]))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...], int]:
    """Loads, sizes of a mesh, and a number of replicas that fits."""
    sizes = draw(st.sampled_from([(1,), (2,), (3,), (4,), (8,), (2, 2), (2, 3), (4, 2), (3, 1), (1, 4)]))
    ranks = torch.Size(sizes).numel()
    experts = draw(st.integers(1, 20))
    least, most = max(1, -(-experts // ranks)), experts
    slots = draw(st.integers(least, most))
    loads = draw(st.lists(LOADS, min_size=experts, max_size=experts))
    return torch.tensor(loads, dtype=torch.float64), sizes, slots * ranks - experts


@given(drawn())
def test_every_slot_is_filled_and_every_expert_placed(case) -> None:
    loads, sizes, replicas = case
    placement = expert_placement(loads, sizes, replicas=replicas)
    assert placement.num_experts == len(loads)
    assert placement.num_slots == len(loads) + replicas == sum(placement.replicas)
    assert placement.num_ranks == torch.Size(sizes).numel()
    for experts in placement.experts_of_rank:
        assert len(set(experts)) == len(experts) == placement.slots_per_rank
    assert placement == expert_placement(loads.clone(), list(sizes), replicas=replicas)


@given(drawn())
def test_ranks_differ_by_the_load_of_a_replica(case) -> None:
    loads, sizes, replicas = case
    placement = expert_placement(loads, sizes, replicas=replicas)
    by_rank = placement.rank_loads(loads)
    heaviest = (loads / torch.tensor(placement.replicas)).max().item()
    rounding = 1e-9 * (1 + loads.sum().item())
    assert by_rank.sum().item() == pytest.approx(loads.sum().item())
    nodes = by_rank.view(sizes[0], -1) if len(sizes) == 2 and replicas else by_rank.view(1, -1)
    assert (nodes.amax(1) - nodes.amin(1)).max() <= heaviest + rounding
    totals = nodes.sum(1)
    assert totals.max() - totals.min() <= heaviest + rounding


@given(drawn())
def test_replicas_go_where_they_help_most(case) -> None:
    """No other numbers of replicas leave the heaviest of them less, among experts that are not on every rank."""
    loads, sizes, replicas = case
    counts = torch.tensor(expert_placement(loads, sizes, replicas=replicas).replicas)
    ranks = torch.Size(sizes).numel()
    assert counts.max() <= ranks
    before = torch.where(counts > 1, loads / (counts - 1), torch.inf)  # load of each replica with one fewer
    here = torch.where(counts < ranks, loads / counts, 0)
    assert before.min() >= here.max() * (1 - 1e-12)


@given(drawn())
def test_replicas_are_spread_over_nodes(case) -> None:
    loads, sizes, replicas = case
    placement = expert_placement(loads, sizes, replicas=replicas)
    assert_spread(placement, sizes, replicas)


def assert_spread(placement: ExpertPlacement, sizes: tuple[int, ...], replicas: int) -> None:
    if len(sizes) == 2 and replicas:
        nodes, places = sizes
        for expert, count in enumerate(placement.replicas):
            held = [
                sum(expert in experts for experts in placement.experts_of_rank[node * places : (node + 1) * places])
                for node in range(nodes)
            ]
            assert max(held) == -(-count // nodes)


@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_no_rank_has_more_than_with_contiguous_experts(ranks, slots, data) -> None:
    loads = torch.tensor(data.draw(st.lists(LOADS, min_size=ranks * slots, max_size=ranks * slots))).double()
    naive = ExpertPlacement.contiguous(len(loads), ranks)
    placed = expert_placement(loads, (ranks,))
    assert placed.rank_loads(loads).max() <= naive.rank_loads(loads).max() * (1 + 1e-12)


@given(drawn(), st.randoms())
def test_renumbered_ranks_hold_the_same_sets(case, random) -> None:
    loads, sizes, replicas = case
    placement = expert_placement(loads, sizes, replicas=replicas)
    assert expert_placement(loads, sizes, replicas=replicas, before=placement) == placement
    other = expert_placement(loads.flip(0), sizes, replicas=replicas)
    renumbered = expert_placement(loads, sizes, replicas=replicas, before=other)
    assert sorted(renumbered.experts_of_rank) == sorted(placement.experts_of_rank)
    if len(sizes) == 1:
        shuffled = list(placement.experts_of_rank)
        random.shuffle(shuffled)
        before = ExpertPlacement(tuple(shuffled))
        assert expert_placement(loads, sizes, replicas=replicas, before=before) == before
    else:
        assert_spread(renumbered, sizes, replicas)


def test_replicas_may_cost_where_contiguous_experts_are_even_by_chance() -> None:
    """Why the law above is without replicas: slots must be filled, and their shares are equal."""
    loads = torch.tensor([5.0, 1.0, 4.0, 2.0])
    assert ExpertPlacement.contiguous(4, 2).rank_loads(loads).tolist() == [6, 6]
    assert expert_placement(loads, (2,), replicas=2).rank_loads(loads).tolist() == [6.5, 5.5]


def test_one_hot_expert_is_shared_by_all_ranks() -> None:
    loads = torch.tensor([97.0, 1.0, 1.0, 1.0])
    placement = expert_placement(loads, (4,), replicas=4)
    assert placement.replicas[0] == 4
    assert placement.rank_loads(loads).max() < 26
    assert ExpertPlacement.contiguous(4, 4).rank_loads(loads).max() == 97


def of_a_mesh(experts: int) -> list[ExpertPlacement]:
    divided = division(4 // experts, experts)
    loads = torch.arange(8.0)
    meshes: list[DeviceMesh | tuple[int, ...]] = [divided.mesh["ep"], (experts,), divided.two_stage, (2, experts // 2)]
    return [expert_placement(loads, mesh, replicas=4) for mesh in meshes]


@pytest.mark.slow
def test_a_mesh_is_its_sizes(ranks: Ranks) -> None:
    for one, same, two, same_two in ranks.run(of_a_mesh, 4):
        assert one == same
        assert two == same_two


@pytest.mark.parametrize(
    ("loads", "sizes", "replicas", "message"),
    [
        ([[1.0]], (1,), 0, r"loads must have shape \(E,\), one number for each expert, got \(1, 1\)"),
        ([], (1,), 0, r"got \(0,\)"),
        ([1.0, -1.0], (1,), 0, "finite and not negative, got -1.0 to 1.0"),
        ([1.0, float("nan")], (1,), 0, "finite and not negative"),
        ([1.0], (1, 1, 1), 0, "one dimension, or two, nodes and ranks of a node, got 3"),
        ([1.0], (0,), 0, "size of mesh must be at least 1"),
        ([1.0, 1.0], (2,), -1, "replicas must be at least 0"),
        ([1.0] * 7, (2,), 0, "7 experts and 0 replicas are no multiple of 2 ranks. Use 1 replicas"),
        ([1.0] * 2, (2,), 4, "at most 2, every expert on each of 2 ranks, got 4"),
    ],
)
def test_errors(loads, sizes, replicas, message) -> None:
    with pytest.raises(ValueError, match=message):
        expert_placement(torch.tensor(loads), sizes, replicas=replicas)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ((), r"equal numbers of slots, at least 1, got \[\]"),
        (((),), r"at least 1, got \[0\]"),
        (((0, 1), (2,)), r"got \[1, 2\]"),
        (((0, 0), (1, 2)), r"rank 0 must hold an expert once, got \[0, 0\]"),
        (((0, 1), (1, 3)), r"got none of \[2\]"),
        (((-1, 0),), "numbered from 0"),
    ],
)
def test_errors_of_placements(experts, message) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertPlacement(experts)


def test_ranks_before_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="before must be a placement on 2 ranks, got one on 4"):
        expert_placement(torch.ones(4), (2,), before=ExpertPlacement.contiguous(4, 4))


def test_contiguous_errors() -> None:
    with pytest.raises(ValueError, match="num_experts must be a multiple of the 2 ranks, got 5"):
        ExpertPlacement.contiguous(5, 2)
