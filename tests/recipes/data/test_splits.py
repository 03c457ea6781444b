from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.splits import draw_splits

GROUPS = st.lists(st.integers(0, 40), min_size=3, max_size=200).map(lambda ids: [f"p{i}" for i in ids])
ENOUGH = GROUPS.filter(lambda groups: len(set(groups)) >= 3)
FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.98, 0.01, 0.01)])


@given(ENOUGH, FRACTIONS, st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_no_group_crosses_and_no_split_is_empty(groups, fractions, seed):
    splits = draw_splits(groups, fractions=fractions, seed=seed)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    assert set(splits) == {"train", "val", "test"}


@given(ENOUGH, FRACTIONS, st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_shares_are_right_to_the_size_of_the_largest_group(groups, fractions, seed):
    counts = Counter(draw_splits(groups, fractions=fractions, seed=seed))
    largest = max(Counter(groups).values())
    for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
        target = fraction * len(groups)
        assert target - 2 * largest <= counts[split] <= target + largest


@given(ENOUGH, st.integers(0, 1000), st.randoms())
@settings(deadline=None, max_examples=60)
def test_depends_on_seed_and_groups_but_not_on_their_order(groups, seed, random):
    split_of = dict(zip(groups, draw_splits(groups, seed=seed), strict=True))
    shuffled = list(groups)
    random.shuffle(shuffled)
    assert draw_splits(shuffled, seed=seed) == [split_of[group] for group in shuffled]


def test_single_images_meet_their_shares():
    counts = Counter(draw_splits([str(i) for i in range(1000)], seed=4))
    assert counts == {"train": 700, "val": 100, "test": 200}


def test_seeds_differ():
    groups = [str(i) for i in range(100)]
    assert draw_splits(groups, seed=0) != draw_splits(groups, seed=1)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.2, 0.0), (0.7, 0.1, 0.1), (1.2, -0.1, -0.1)])
def test_refuses_fractions_that_are_no_shares(fractions):
    with pytest.raises(ValueError, match=r"fractions must be three positive numbers .* add up to 1, got"):
        draw_splits(["a", "b", "c"], fractions=fractions)


def test_refuses_fewer_groups_than_splits():
    with pytest.raises(ValueError, match="at least 3 are needed to draw train, val and test, got 2"):
        draw_splits(["a", "b", "a", "b"])
