"""Orders of training: each study once, the same whatever the ranks; strata in every batch."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.sampling import EndlessSampler, EpochSampler, stratified

STRATA = st.lists(st.integers(0, 4), min_size=1, max_size=200)


def drawn(shuffle, seed=0):
    return shuffle(np.random.default_rng(seed)).tolist()


@given(strata=STRATA, seed=st.integers(0, 99))
def test_a_stratified_order_holds_every_study_once_and_the_strata_in_every_stretch(strata, seed):
    order = drawn(stratified(strata), seed)
    assert sorted(order) == list(range(len(strata)))
    labels = np.array(strata)[order]
    for stratum in set(strata):
        places = labels == stratum
        for length in (1, 5, 32):
            counts = np.convolve(places, np.ones(length), "valid") if length <= len(places) else np.array([])
            expected = length * places.mean()
            spread = 2 + len(set(strata)) * places.mean()
            assert (abs(counts - expected) <= spread).all()


@given(strata=STRATA, seed=st.integers(0, 99))
def test_a_balanced_order_holds_all_strata_alike(strata, seed):
    order = drawn(stratified(strata, balanced=True), seed)
    assert len(order) == len(strata)
    counts = np.unique(np.array(strata)[order], return_counts=True)[1]
    assert counts.max() - counts.min() <= len(set(strata))
    for stratum in set(strata):
        members = [index for index in order if strata[index] == stratum]
        times = np.bincount(members, minlength=len(strata))[np.array(strata) == stratum]
        assert times.max() - times.min() <= 2  # as many rounds as needed, the first from anywhere


def test_orders_depend_on_the_seed_and_studies_of_large_strata_take_turns():
    strata = [0] * 90 + [1] * 10
    shuffle = stratified(strata, balanced=True)
    assert drawn(shuffle, 1) == drawn(shuffle, 1) != drawn(shuffle, 2)
    seen = {index for seed in range(20) for index in drawn(shuffle, seed)}
    assert seen == set(range(100))


@pytest.mark.parametrize("balanced", [False, True])
def test_every_batch_of_every_rank_holds_every_stratum(balanced):
    strata = [0, 1, 2, 0] * 30 + [3] * 40
    ranks = [
        EpochSampler(160, 16, seed=5, rank=rank, world_size=2, shuffle=stratified(strata, balanced=balanced),
                     in_blocks=True)
        for rank in (0, 1)
    ]  # fmt: skip
    for sampler in ranks:
        for batch in sampler:
            counts = np.bincount([strata[index] for _, index in batch], minlength=4)
            assert counts.min() >= 2, counts


@given(
    size=st.integers(1, 60), batch=st.integers(1, 9), world_size=st.integers(1, 4), epoch=st.integers(0, 3),
    in_blocks=st.booleans(),
)  # fmt: skip
def test_ranks_share_the_steps_of_one_process(size, batch, world_size, epoch, in_blocks):
    def steps(batch_size, rank, ranks):
        sampler = EpochSampler(size, batch_size, seed=3, rank=rank, world_size=ranks, in_blocks=in_blocks)
        sampler.epoch = epoch
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    alone = steps(batch * world_size, 0, 1)
    together = [steps(batch, rank, world_size) for rank in range(world_size)]
    assert {len(each) for each in together} == {len(alone)}
    for whole, *parts in zip(alone, *together, strict=True):
        dealt = list(chain(*parts))
        assert len({len(part) for part in parts}) == 1
        assert set(dealt) >= set(whole)
        assert len(dealt) - len(whole) < world_size  # the last step is filled up


@given(
    size=st.integers(1, 40), batch=st.integers(1, 7), batches=st.integers(1, 9), world_size=st.integers(1, 3)
)  # fmt: skip
def test_passes_without_end_hold_every_study_once_wherever_epochs_end(size, batch, batches, world_size):
    samplers = [
        EndlessSampler(size, batch, batches, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    seen = []
    for epoch in range(4):
        for sampler in samplers:
            sampler.epoch = epoch
        dealt = list(zip(*samplers, strict=True))
        assert len(dealt) == batches == len(samplers[0])
        seen += [address for step in dealt for part in step for address in part]
    passes = len(seen) // size
    for number in range(passes):
        one = list(islice(seen, number * size, (number + 1) * size))
        assert sorted(one) == [(number, index) for index in range(size)]


def test_an_epoch_of_endless_passes_does_not_depend_on_those_before():
    sampler = EndlessSampler(11, 4, 5, seed=2)
    whole = []
    for epoch in range(6):
        sampler.epoch = epoch
        whole.append(list(sampler))
    again = EndlessSampler(11, 4, 5, seed=2)
    again.epoch = 4
    assert list(again) == whole[4]
