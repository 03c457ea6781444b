"""What the data sets of both recipes share: images fitted to the encoder, and loaders whose order is reproducible."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from recipes.data.decoded_cache import DecodedImages
from recipes.data.images.square import fit_square
from recipes.data.images.transforms import augment
from recipes.data.sampling import EpochSampler
from recipes.data.studies import StudySplit
from recipes.shared.settings import TrainSettings


class FittedImages:
    """The images of a split, fitted to a square, and augmented by seed, epoch and index alone.

    An image is therefore the same whatever the order, the worker, or a resumption in between.

    Args:
        split: The studies.
        size: Side of the square, in pixels.
        augment_seed: Seed of the augmentation; ``None`` for none.
        cache: Whether decoded images stay in memory.
        stored: Images of the split that were decoded before, of :func:`~recipes.data.decoded_cache.fill_cache`.
    """

    def __init__(
        self,
        split: StudySplit,
        size: int,
        *,
        augment_seed: int | None = None,
        cache: bool = False,
        stored: DecodedImages | None = None,
    ) -> None:
        self.split, self.size, self.augment_seed, self.stored = split, size, augment_seed, stored
        self.cache: dict[int, NDArray[np.uint8]] | None = {} if cache else None

    def fitted(self, index: int) -> NDArray[np.uint8]:
        """Returns a study's image in the square, not augmented; black for a study without one."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        image = None if self.stored is None else self.stored(index)
        if image is None:
            read = self.split[index].image
            image = np.zeros((self.size, self.size), np.uint8) if read is None else fit_square(read, self.size)
        if self.cache is not None:
            self.cache[index] = image
        return image

    def __call__(self, epoch: int, index: int) -> NDArray[np.uint8]:
        """Returns a study's image as an epoch shows it."""
        image = self.fitted(index)
        if self.augment_seed is None:
            return image
        return augment(image, np.random.default_rng((self.augment_seed, epoch, index)))


def epoch_loader(
    dataset: Dataset[Any],
    size: int,
    settings: TrainSettings,
    collate: Callable[[Sequence[Any]], Any],
    *,
    seed: int | None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Makes a loader of a data set that is addressed by ``(epoch, index)``.

    Set ``loader.batch_sampler.epoch`` before each epoch.

    Args:
        dataset: The data set.
        size: Its length.
        settings: Batch size and workers.
        collate: Makes a batch of items.
        seed: Seed of the order; ``None`` keeps the studies in theirs.
        rank: This rank.
        world_size: Number of ranks.
    """
    return DataLoader(
        dataset,
        batch_sampler=EpochSampler(size, settings.batch_size, seed=seed, rank=rank, world_size=world_size),
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
