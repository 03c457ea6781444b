"""Tile schedules held to a loop over experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels.plan.schedule import max_tiles, tile_schedules
from tests.oracles import poisoned_empty

quick = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def _offsets(counts):
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


def _tiles(offsets, num_rows, height, with_unassigned):
    bounds = [*offsets, num_rows] if with_unassigned else offsets
    return [[e, first] for e in range(len(bounds) - 1) for first in range(bounds[e], bounds[e + 1], height)]


def _check(counts, unassigned_rows, heights, with_unassigned, device, dtype=torch.int64):
    offsets = _offsets(counts)
    num_rows = offsets[-1] + unassigned_rows
    with poisoned_empty():
        actual = tile_schedules(torch.tensor(offsets, dtype=dtype, device=device), num_rows, heights, with_unassigned)
    assert len(actual) == len(heights)
    for schedule, height in zip(actual, heights, strict=True):
        tiles = _tiles(offsets, num_rows, height, with_unassigned)
        assert schedule.dtype == torch.int32
        assert schedule.is_contiguous()
        assert schedule.shape == (1 + max_tiles(num_rows, len(counts), height, with_unassigned), 2)
        assert schedule[0].tolist() == [len(tiles), height]
        assert schedule[1 : 1 + len(tiles)].tolist() == tiles
        assert schedule[1 + len(tiles) :].tolist() == [[-1, num_rows]] * (len(schedule) - 1 - len(tiles))


@quick
@given(
    st.lists(st.sampled_from([0, 0, 1, 15, 16, 17, 70]), min_size=1, max_size=7),
    st.sampled_from([0, 1, 40]),
    st.booleans(),
    st.sampled_from([(16,), (64, 16), (16, 32, 64, 128)]),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_tiles_are_those_of_a_loop_over_experts(counts, unassigned_rows, with_unassigned, heights, dtype):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check(counts, unassigned_rows, heights, with_unassigned, device, dtype)


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
@pytest.mark.parametrize("with_unassigned", [False, True])
def test_extreme_numbers_of_experts_and_rows(counts, unassigned_rows, with_unassigned, device):
    _check(counts, unassigned_rows, (16, 64), with_unassigned, device)


def test_repeated_and_many_heights(device):
    _check([5, 40, 0], 2, (16, 32, 16, 64, 128, 8), True, device)


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


def test_too_many_rows_are_named(device):
    with pytest.raises(ValueError, match=r"num_rows must be below 2\*\*31, got 2147483648"):
        tile_schedules(torch.zeros(3, dtype=torch.int64, device=device), 2**31, (64,))
