"""All drawn sources: the same arguments give the same bits however they are read, and mistakes are refused."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from recipes.data.pairs import PairSource
from recipes.data.phantom import phantom_hard_source, phantom_modalities_source, phantom_source
from recipes.data.studies import StudySource
from tests.recipes.data.phantom.same_study import same

Source = StudySource | PairSource


@pytest.fixture(
    scope="module",
    params=[phantom_source, phantom_hard_source, phantom_modalities_source],
    ids=["chest", "hard", "modalities"],
)
def build(request: pytest.FixtureRequest) -> Callable[..., Source]:
    return request.param


@pytest.fixture(scope="module")
def source(build: Callable[..., Source]) -> Source:
    return build(seed=3, train=60, val=24, test=30)


def test_same_arguments_give_the_same_bits_in_any_order(build: Callable[..., Source], source: Source) -> None:
    again = build(seed=3, train=60, val=24, test=30)
    forward = [source.train[index] for index in range(60)]
    backward = [again.train[index] for index in reversed(range(60))][::-1]
    assert all(same(one, other) for one, other in zip(forward, backward, strict=True))


def test_a_smaller_split_is_the_start_of_a_larger_one(build: Callable[..., Source], source: Source) -> None:
    smaller = build(seed=3, train=17, val=1, test=1)
    assert all(same(smaller.train[index], source.train[index]) for index in range(17))


def test_pickled_split_draws_the_same(source: Source) -> None:
    copy = pickle.loads(pickle.dumps(source.test))
    assert all(same(copy[index], source.test[index]) for index in range(len(copy)))


def test_writing_to_a_study_leaves_the_split_alone(source: Source) -> None:
    before, changed = source.val[0], source.val[0]
    changed.labels[:] = 7.0
    changed.image[:] = 7
    assert same(source.val[0], before)


def test_index_counts_from_the_end_and_is_checked(source: Source) -> None:
    assert same(source.val[-1], source.val[23])
    assert same(source.val[np.int64(2)], source.val[2])
    for index in (24, -25):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 24 studies"):
            source.val[index]


@pytest.mark.parametrize(
    ("name", "value", "smallest"),
    [
        ("seed", -1, 0),
        ("seed", 0.5, 0),
        ("train", 0, 1),
        ("val", -3, 1),
        ("val", 2.0, 1),
        ("test", True, 1),
        ("test", "9", 1),
        ("size", 63, 64),
        ("size", 96.0, 64),
    ],
)
def test_bad_argument_is_refused(build: Callable[..., Source], name: str, value: object, smallest: int) -> None:
    message = f"{name}: expected a whole number of at least {smallest}, got {value!r}"
    with pytest.raises(ValueError, match=message):
        build(**{name: value})
