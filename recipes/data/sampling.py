"""In which order studies are seen: decided by seed and epoch alone, and dealt to the ranks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)``, in an order that ``(seed, epoch)`` decides, dealt to the ranks.

    Args:
        size: Number of studies.
        batch_size: Studies per batch and rank.
        seed: Seed of the order; ``None`` keeps the studies in theirs.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int | None, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self._mine(range(self._padded()))) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.seed is None:
            mine = self._mine(range(self.size))
        else:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
            mine = self._mine([order[place % self.size] for place in range(self._padded())])
        for start in range(0, len(mine), self.batch_size):
            yield [(self.epoch, index) for index in mine[start : start + self.batch_size]]

    def _padded(self) -> int:
        """Counts the studies of an epoch: in training the first ones fill the last round, so that ranks step alike."""
        return self.size + (0 if self.seed is None else -self.size % self.world_size)

    def _mine(self, order: Sequence[int]) -> Sequence[int]:
        return order[self.rank :: self.world_size]


def as_it_is(item: Any) -> Any:
    """Returns an item of a loader without batches as it came; by default its arrays would become tensors."""
    return item
