"""Studies as batches of tensors."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data.decoded_cache import DecodedImages
from recipes.data.images.transforms import to_tensor
from recipes.data.images.volumes import slice_of
from recipes.data.studies import StudySplit, images_present
from recipes.medvlmoe.config import TrainConfig
from recipes.medvlmoe.modalities import ModalityDropout
from recipes.medvlmoe.volumes import stack_volumes
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.loading import FittedImages, epoch_loader


class Batch(NamedTuple):
    """A batch of studies.

    Attributes:
        images: ``(B, 3, size, size)``, normalised; of volumes ``(B, S, 3, size, size)``.
        input_ids: ``(B, N)`` token ids.
        text_mask: ``(B, N)``, True for tokens of the text; a row without any has no text.
        labels: ``(B, C)``: 0, 1 or NaN.
        index: ``(B,)``, place in the split.
        image_mask: ``(B,)``, False for a study without image, or ``None`` if all have one; of volumes ``(B, S)``, True
            for slices.
    """

    images: Tensor
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    index: Tensor
    image_mask: Tensor | None = None

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns what the model takes: images, token ids and the masks of texts and images."""
        return self.images, self.input_ids, self.text_mask, self.image_mask

    def to(self, device: torch.device) -> "Batch":
        """Returns the same on another device."""
        return Batch(*(None if field is None else field.to(device, non_blocking=True) for field in self))


Item = tuple[Tensor | None, list[int], np.ndarray, int]
"""Of a study the image, or ``None`` without one, its token ids, its labels, and its place in the split."""


class StudyDataset(Dataset[Item]):
    """A split as items of one study each, addressed by ``(epoch, index)``.

    Images are those of :class:`~recipes.shared.loading.FittedImages`.

    Args:
        split: The studies.
        texts: Their texts.
        tokenizer: Of the text encoder, or ``None`` without one.
        spec: Of the image encoder.
        text_tokens: Longest text.
        augment_seed: Seed of the augmentation; ``None`` for none.
        cache: Whether decoded images stay in memory.
        stored: Images that were decoded before, of :func:`~recipes.data.decoded_cache.fill_cache`.
        dropout: Leaves out images or texts of studies that have both.
        slices: Slices of a volume that are read; ``None`` for images.
    """

    def __init__(
        self,
        split: StudySplit,
        texts: Sequence[str | None],
        tokenizer: Any,
        spec: ImageEncoderSpec,
        *,
        text_tokens: int,
        augment_seed: int | None = None,
        cache: bool = False,
        stored: DecodedImages | None = None,
        dropout: ModalityDropout | None = None,
        slices: int | None = None,
    ) -> None:
        self.split = split
        self.slices = slices
        self.spec = spec
        self.dropout = dropout
        self.has_image = images_present(split)
        self.images = FittedImages(
            split, spec.size, augment_seed=augment_seed, cache=cache, stored=stored, slices=slices
        )
        self.tokens = _tokenize(texts, tokenizer, text_tokens)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        tokens, has_image = self.tokens[index], bool(self.has_image[index])
        if self.dropout is not None and has_image and tokens:
            left_out = self.dropout.left_out(epoch, index)
            has_image = left_out != "image"
            tokens = [] if left_out == "text" else tokens
        image = self._tensor(self.images(epoch, index)) if has_image else None
        return image, tokens, self.split.labels[index], index

    def stack(self, items: Sequence[Item]) -> Batch:
        """Stacks studies of this set; see :func:`collate`."""
        return collate(items, self.spec.size, self.slices)

    def _tensor(self, image: np.ndarray) -> Tensor:
        """Returns ``(3, size, size)``, or of a volume ``(n, 3, size, size)``."""
        if image.ndim < 4:
            return to_tensor(image, self.spec)
        return torch.stack([to_tensor(slice_of(image, place), self.spec) for place in range(len(image))])


def make_loader(
    dataset: StudyDataset, config: TrainConfig, *, seed: int | None, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Makes a loader of :class:`Batch`; set ``loader.batch_sampler.epoch`` before each epoch."""
    return epoch_loader(dataset, len(dataset), config, dataset.stack, seed=seed, rank=rank, world_size=world_size)


def loader_of(dataset: StudyDataset, index: Iterable[int], config: TrainConfig) -> DataLoader[Any]:
    """Makes a loader of :class:`Batch` of some studies, in their order and as they are in epoch 0."""
    addresses: Any = [(0, int(each)) for each in index]
    return DataLoader(dataset, batch_size=config.batch_size, sampler=addresses, collate_fn=dataset.stack)


def collate(items: Sequence[Item], size: int, slices: int | None = None) -> Batch:
    """Stacks studies; texts are padded on the right to the longest, volumes to ``slices``; missing images are zeros.

    Args:
        items: The studies.
        size: Side of the images.
        slices: Of the volumes; ``None`` for images.
    """
    images, tokens, labels, index = zip(*items, strict=True)
    stacked, image_mask = _stack_images(images, size) if slices is None else stack_volumes(images, size, slices)
    longest = max(1, *(len(ids) for ids in tokens))
    input_ids = torch.zeros(len(items), longest, dtype=torch.int64)
    text_mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        text_mask[row, : len(ids)] = True
    return Batch(
        stacked,
        input_ids,
        text_mask,
        torch.from_numpy(np.stack(labels)),
        torch.tensor(index),
        image_mask,
    )


def _stack_images(images: Sequence[Tensor | None], size: int) -> tuple[Tensor, Tensor | None]:
    """Returns ``(B, 3, size, size)``, and which images are there if not all are."""
    present = torch.tensor([image is not None for image in images])
    blank = torch.zeros(3, size, size)
    stacked = torch.stack([blank if image is None else image for image in images])
    return stacked, None if present.all() else present


def _tokenize(texts: Sequence[str | None], tokenizer: Any, limit: int) -> list[list[int]]:
    if tokenizer is None:
        return [[] for _ in texts]
    return [
        [] if text is None or not text.strip() else tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        for text in texts
    ]
