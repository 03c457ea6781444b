"""What the data sets of both recipes share: images fitted to the encoder, and loaders whose order is reproducible."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from recipes.data.decoded_cache import DecodedImages, fill_cache
from recipes.data.images.square import fit_square
from recipes.data.images.transforms import augment
from recipes.data.images.volumes import fit_volume, slice_of
from recipes.data.sampling import EpochSampler, stratified
from recipes.data.studies import StudySplit
from recipes.shared.settings import Sampling, TrainSettings


class FittedImages:
    """The images of a split, fitted to a square, and augmented by seed, epoch and index alone.

    An image is therefore the same whatever the order, the worker, or a resumption in between.

    Args:
        split: The studies.
        size: Side of the square, in pixels.
        augment_seed: Seed of the augmentation; ``None`` for none.
        cache: Whether decoded images stay in memory.
        stored: Images of the split that were decoded before, of :func:`~recipes.data.decoded_cache.fill_cache`.
        slices: Reads volumes, of which so many slices are taken at most; an image is a volume of one. ``None``: images.
    """

    def __init__(
        self,
        split: StudySplit,
        size: int,
        *,
        augment_seed: int | None = None,
        cache: bool = False,
        stored: DecodedImages | None = None,
        slices: int | None = None,
    ) -> None:
        self.slices = slices
        self.split, self.size, self.augment_seed, self.stored = split, size, augment_seed, stored
        self.cache: dict[int, NDArray[np.uint8]] | None = {} if cache else None

    def fitted(self, index: int) -> NDArray[np.uint8]:
        """Returns a study's image in the square, not augmented; black for a study without one."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        image = None if self.stored is None else self.stored(index)
        if image is None:
            image = self._fit(self.split[index].image, index)
        if self.cache is not None:
            self.cache[index] = image
        return image

    def __call__(self, epoch: int, index: int) -> NDArray[np.uint8]:
        """Returns a study's image as an epoch shows it; all slices of a volume are moved alike."""
        image = self.fitted(index)
        if self.augment_seed is None:
            return image
        key = (self.augment_seed, epoch, index)
        if image.ndim < 4:
            return augment(image, np.random.default_rng(key))
        moved = np.stack([augment(slice_of(image, place), np.random.default_rng(key)) for place in range(len(image))])
        return moved.reshape(image.shape)

    def _fit(self, image: NDArray[np.uint8] | None, index: int) -> NDArray[np.uint8]:
        if image is None:
            return np.zeros((self.size, self.size), np.uint8)
        if self.slices is not None:
            return fit_volume(image, self.size, self.slices)
        if image.ndim == 4:
            raise ValueError(
                f"{self.split.ids[index]!r} is a volume of {len(image)} slices, where an image is read: MedVLMoE reads "
                "volumes with --slices"
            )
        return fit_square(image, self.size)


def decoded_images(
    split: Any, name: str, size: int, settings: TrainSettings, *, shown: bool = True
) -> DecodedImages | None:
    """Fills the cache of decoded images of the settings with a split; ``None`` without a folder for it.

    Args:
        split: The studies; a stream is refused.
        name: Of the split, for the progress bar.
        size: Side of the square, in pixels.
        settings: Folder and limit of the cache, and workers.
        shown: Whether there is a progress bar.

    Raises:
        ValueError: As :func:`~recipes.data.decoded_cache.fill_cache`.
    """
    if settings.cache_folder is None:
        return None
    return fill_cache(
        split,
        settings.cache_folder,
        size,
        limit_bytes=settings.cache_gigabytes * 1e9,
        workers=settings.workers,
        title=f"decode {name}" if shown else None,
    )


def epoch_loader(
    dataset: Dataset[Any],
    size: int,
    settings: TrainSettings,
    collate: Callable[[Sequence[Any]], Any],
    *,
    seed: int | None,
    rank: int = 0,
    world_size: int = 1,
    sampling: Sampling = "shuffled",
    strata: Sequence[int] = (),
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
        sampling: How the order of training is drawn.
        strata: Of each study, such as its modality; needed unless ``sampling`` is ``"shuffled"``.
    """
    in_strata = sampling != "shuffled"
    sampler = EpochSampler(
        size,
        settings.batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=stratified(strata, balanced=sampling == "balanced") if in_strata else None,
        in_blocks=in_strata,
    )
    return batch_loader(dataset, sampler, settings, collate)


def batch_loader(
    dataset: Dataset[Any],
    sampler: Sampler[list[Any]],
    settings: TrainSettings,
    collate: Callable[[Sequence[Any]], Any],
) -> DataLoader[Any]:
    """Makes a loader of the batches that a sampler names.

    Args:
        dataset: The data set, addressed as the sampler does.
        sampler: Yields the addresses of each batch.
        settings: Workers.
        collate: Makes a batch of items.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
