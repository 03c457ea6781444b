"""Tile schedules held to a loop over experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels import configs
from moekit_kernels.plan import RowOrder
from moekit_kernels.plan.schedule import max_tiles, schedule_bounds, tile_schedules, tiles_of, with_tiles
from tests.oracles import poisoned_empty

quick = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def _offsets(counts):
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


def _tiles(offsets, num_rows, height):
    bounds = [*offsets, num_rows]
    return [[e, first] for e in range(len(bounds) - 1) for first in range(bounds[e], bounds[e + 1], height)]


def _check(counts, unassigned_rows, heights, device, dtype=torch.int64):
    offsets = _offsets(counts)
    num_rows = offsets[-1] + unassigned_rows
    with poisoned_empty():
        actual = tile_schedules(torch.tensor(offsets, dtype=dtype, device=device), num_rows, heights)
    assert len(actual) == len(heights)
    for schedule, height in zip(actual, heights, strict=True):
        tiles = _tiles(offsets, num_rows, height)
        of_experts = sum(expert < len(counts) for expert, _ in tiles)
        assert schedule.dtype == torch.int32
        assert schedule.is_contiguous()
        assert schedule.shape == (schedule_bounds(num_rows, len(counts), (height,))[1], 2)
        assert len(tiles) <= max_tiles(num_rows, len(counts), height, with_unassigned=True) < len(schedule)
        assert schedule[0].tolist() == [of_experts, len(tiles)]
        assert schedule[1 : 1 + len(tiles)].tolist() == tiles
        assert schedule[1 + len(tiles) :].tolist() == [[-1, num_rows]] * (len(schedule) - 1 - len(tiles))


@quick
@given(
    st.lists(st.sampled_from([0, 0, 1, 15, 16, 17, 70]), min_size=1, max_size=7),
    st.sampled_from([0, 1, 40]),
    st.sampled_from([(16,), (64, 16), (16, 32, 64, 128)]),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_tiles_are_those_of_a_loop_over_experts(counts, unassigned_rows, heights, dtype):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check(counts, unassigned_rows, heights, device, dtype)


@pytest.mark.parametrize(
    ("counts", "unassigned_rows"),
    [
        ([0] * 5, 0),
        ([0] * 5, 33),
        ([1, 0, 1] + [0] * 124, 0),  # fewer rows than experts
        ([1] * 129, 3),  # more experts than one step looks at
        ([0] * 130 + [300] + [0] * 69, 0),  # all to one
    ],
)
def test_extreme_numbers_of_experts_and_rows(counts, unassigned_rows, device):
    _check(counts, unassigned_rows, (16, 64), device)


def test_repeated_and_many_heights(device):
    _check([5, 40, 0], 2, (16, 32, 16, 64, 128, 8), device)


def test_the_bound_is_reached_and_never_passed():
    for num_rows in range(12):
        for num_experts in range(1, 5):
            splits = _splits(num_rows, num_experts)
            for height in (1, 2, 4):
                most = max(sum(-(-count // height) for count in split) for split in splits)
                assert most == max_tiles(num_rows, num_experts, height)
                most_with_unassigned = max(
                    sum(-(-count // height) for count in split) for split in _splits(num_rows, num_experts + 1)
                )
                assert most_with_unassigned == max_tiles(num_rows, num_experts, height, True)


def _splits(total, parts):
    if parts == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in _splits(total - first, parts - 1)]


@pytest.fixture
def two_heights(monkeypatch):
    """A table of two heights, 16 and 32, for the target of this machine."""
    entries = {"16-bit": [[0, [32, 16, 16, 2, 4, 2, 1]], [96, [16, 16, 16, 2, 4, 2, 1]]]}
    table = {name: dict.fromkeys(("forward", "glu", "activation"), entries) for name in configs.committed()}
    monkeypatch.setattr(configs, "committed", lambda: table)
    configs.tile_heights.cache_clear()
    yield
    configs.tile_heights.cache_clear()


@pytest.mark.usefixtures("two_heights")
def test_an_order_holds_the_schedules_of_the_table_and_another_height_gets_its_own(device):
    offsets = torch.tensor([0, 40, 40, 47], device=device)
    rows = torch.zeros(50, dtype=torch.int64, device=device)
    bare = RowOrder(rows, rows, offsets, None)
    order = with_tiles(bare)
    assert with_tiles(order) is order
    for height in (16, 32, 64):
        (expected,) = tile_schedules(offsets, 50, (height,))
        shared = tiles_of(order, 50, height)
        assert torch.equal(shared, expected)
        assert torch.equal(tiles_of(bare, 50, height), expected)
        assert (shared.untyped_storage().data_ptr() == order.tiles.untyped_storage().data_ptr()) == (height < 64)
        # As a plan would have it that was moved from another target.
        assert torch.equal(tiles_of(order._replace(tiles=order.tiles[:8]), 50, height), expected)


def test_too_many_rows_are_named(device):
    with pytest.raises(ValueError, match=r"num_rows must be below 2\*\*31, got 2147483648"):
        tile_schedules(torch.zeros(3, dtype=torch.int64, device=device), 2**31, (64,))
