"""Loaders of training and validation pairs, in an order that seed and epoch decide."""

from typing import Any

from torch.utils.data import DataLoader

from recipes.data.pairs import PairSource, PairStream
from recipes.data.sampling import EndlessSampler, EpochSampler, stratified
from recipes.medmoe.config import Config, TrainConfig
from recipes.medmoe.data.batches import PairDataset, PairReader, StreamDataset
from recipes.shared.loading import batch_loader, decoded_images, epoch_loader


def make_loader(
    dataset: PairDataset, config: TrainConfig, *, seed: int | None, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Makes a loader of :class:`~recipes.medmoe.data.batches.Batch` over a split; see :func:`set_epoch`.

    Without a seed it keeps the order of the split.
    """
    return epoch_loader(
        dataset,
        len(dataset),
        config,
        dataset.reader.collate,
        seed=seed,
        rank=rank,
        world_size=world_size,
        sampling="shuffled" if seed is None else config.sampling,
        strata=[dataset.reader.label(modality) for modality in dataset.split.modalities],
    )


def train_loader(
    config: Config, source: PairSource, reader: PairReader, *, rank: int, world_size: int
) -> tuple[DataLoader[Any], int]:
    """Makes the loader of the training pairs, and counts how many batches of it make an epoch."""
    settings, seed = config.train, config.seeds[0]
    stored = decoded_images(source.train, "train", reader.spec.size, settings, shown=rank == 0)
    augment_seed = seed if settings.augment else None
    if isinstance(source.train, PairStream):
        stream = StreamDataset(source.train, reader, augment_seed=augment_seed)
        loader = _stream_loader(stream, config, rank=rank, world_size=world_size)
        return loader, len(loader)
    cache = settings.cache_images
    dataset = PairDataset(source.train, reader, augment_seed=augment_seed, cache=cache, stored=stored)
    loader = make_loader(dataset, settings, seed=seed, rank=rank, world_size=world_size)
    return loader, len(loader)


def _stream_loader(dataset: StreamDataset, config: Config, *, rank: int, world_size: int) -> DataLoader[Any]:
    """Makes a loader of a stream: an epoch is a pass, or so many steps of passes without end."""
    settings, seed, steps = config.train, config.seeds[0], config.data.shards.steps_per_epoch
    shuffle = dataset.stream.shuffle
    if settings.sampling != "shuffled":
        shuffle = stratified(dataset.labels.tolist(), shuffle, balanced=settings.sampling == "balanced")
    size, place = len(dataset), {"rank": rank, "world_size": world_size}
    if steps is None:
        sampler: Any = EpochSampler(size, settings.batch_size, seed=seed, shuffle=shuffle, in_blocks=True, **place)
    else:
        batches = steps * settings.accumulate
        sampler = EndlessSampler(size, settings.batch_size, batches, seed=seed, shuffle=shuffle, **place)
    return batch_loader(dataset, sampler, settings, dataset.reader.collate)


def val_loader(config: Config, source: PairSource, reader: PairReader, *, shown: bool) -> DataLoader[Any]:
    """Makes the loader of the validation pairs, in their order; ``shown`` is whether decoding has a progress bar."""
    settings = config.train
    stored = decoded_images(source.val, "val", reader.spec.size, settings, shown=shown)
    return make_loader(PairDataset(source.val, reader, cache=settings.cache_images, stored=stored), settings, seed=None)


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Sets which epoch's order and augmentation come next."""
    sampler: Any = loader.batch_sampler
    sampler.epoch = epoch
