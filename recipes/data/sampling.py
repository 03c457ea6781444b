"""In which order studies are seen: decided by seed and epoch alone, and dealt to the ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Order = NDArray[np.int64]
Shuffle = Callable[[np.random.Generator], Order]
"""Draws an order of all studies."""


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)``, in an order that ``(seed, epoch)`` decides, dealt to the ranks.

    Args:
        size: Number of studies.
        batch_size: Studies per batch and rank.
        seed: Seed of the order; ``None`` keeps the studies in theirs.
        rank: This rank.
        world_size: Number of ranks.
        shuffle: Draws the order of an epoch: the place of every study, ``size`` of them; a permutation by default.
        in_blocks: Whether a rank gets its studies of a step side by side rather than one by one in turn. The studies
            of a step are the same; an order that repeats, such as a stratified one, needs it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: Shuffle | None = None,
        in_blocks: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle: Shuffle = (lambda rng: rng.permutation(size)) if shuffle is None else shuffle
        self.in_blocks = in_blocks
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(range(self._padded())[self.rank :: self.world_size]) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = self._mine()
        for start in range(0, len(mine), self.batch_size):
            yield [(self.epoch, index) for index in mine[start : start + self.batch_size]]

    def _padded(self) -> int:
        """Counts the studies of an epoch: in training the first ones fill the last round, so that ranks step alike."""
        return self.size + (0 if self.seed is None else -self.size % self.world_size)

    def _mine(self) -> Sequence[int]:
        """Returns this rank's studies of the epoch."""
        if self.seed is None:
            return range(self.size)[self.rank :: self.world_size]
        drawn = self.shuffle(np.random.default_rng((self.seed, self.epoch))).tolist()
        order = [drawn[place % self.size] for place in range(self._padded())]
        if not self.in_blocks:
            return order[self.rank :: self.world_size]
        step = self.batch_size * self.world_size
        steps = (order[start : start + step] for start in range(0, len(order), step))
        return [index for studies in steps for index in block_of(studies, self.rank, self.world_size)]


class EndlessSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(pass, index)``: epochs of so many batches, cut from passes over the studies without end.

    Pass after pass holds every study once, wherever an epoch ends. The studies of a step, over all ranks, depend on
    their number alone: so a run that is resumed, with whatever number of workers, goes on as one that never stopped.

    Args:
        size: Number of studies.
        batch_size: Studies per batch and rank.
        batches: Batches of an epoch.
        seed: Seed of the order.
        rank: This rank.
        world_size: Number of ranks.
        shuffle: Draws the order of a pass; a permutation by default.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        batches: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: Shuffle | None = None,
    ) -> None:
        self.size, self.batch_size, self.batches, self.seed = size, batch_size, batches, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle: Shuffle = (lambda rng: rng.permutation(size)) if shuffle is None else shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.batch_size * self.world_size
        studies = self._from(self.epoch * self.batches * step)
        for _ in range(self.batches):
            yield block_of([next(studies) for _ in range(step)], self.rank, self.world_size)

    def _from(self, place: int) -> Iterator[tuple[int, int]]:
        """Yields the studies of all passes from a place on."""
        number, start = divmod(place, self.size)
        while True:
            order = self.shuffle(np.random.default_rng((self.seed, number))).tolist()
            yield from ((number, index) for index in order[start:])
            number, start = number + 1, 0


def block_of(studies: Sequence[Any], rank: int, world_size: int) -> list[Any]:
    """Returns a rank's part of the studies of a step: as many as every other rank's, side by side."""
    each = len(studies) // world_size
    return list(studies[rank * each : (rank + 1) * each])


def stratified(strata: Sequence[int], shuffle: Shuffle | None = None, *, balanced: bool = False) -> Shuffle:
    """Makes a shuffle whose every stretch holds the strata alike.

    The j-th of the ``q`` studies of a stratum comes at the share ``(j + u) / q`` of the order, with one ``u`` drawn
    for each stratum. So ``k`` studies in a row hold ``k q / size`` of it, give or take two.

    Args:
        strata: Of each study, such as the number of its modality.
        shuffle: Draws the order of the studies within their stratum; a permutation by default.
        balanced: Whether all strata have the same share: studies of small ones come several times, and some of large
            ones not in every epoch. Else each has its own share, and every study comes once.
    """
    of_study = np.asarray(strata)
    names = np.unique(of_study)
    size = len(of_study)

    def draw(rng: np.random.Generator) -> Order:
        order = rng.permutation(size) if shuffle is None else shuffle(rng)
        members = [order[of_study[order] == name] for name in names]
        quotas = [-(-size // len(names)) if balanced else len(own) for own in members]
        drawn = [_repeated(own, quota, rng) for own, quota in zip(members, quotas, strict=True)]
        shares = [(np.arange(quota) + rng.random()) / quota for quota in quotas]
        return np.concatenate(drawn)[np.argsort(np.concatenate(shares), kind="stable")][:size]

    return draw


def _repeated(members: Order, quota: int, rng: np.random.Generator) -> Order:
    """Takes so many members: some of them, or all of them as often as needed, each round in another order."""
    start = 0 if quota == len(members) else int(rng.integers(len(members)))
    rounds = [np.roll(members, -start)]
    while sum(map(len, rounds)) < quota:
        rounds.append(rng.permutation(members))
    return np.concatenate(rounds)[:quota]


def as_it_is(item: Any) -> Any:
    """Returns an item of a loader without batches as it came; by default its arrays would become tensors."""
    return item
