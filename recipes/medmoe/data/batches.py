"""Pairs as batches of tensors."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from recipes.data.decoded_cache import DecodedImages
from recipes.data.images.square import fit_square
from recipes.data.images.transforms import augment, to_tensor
from recipes.data.pairs import PairSplit, PairStream
from recipes.medmoe.data.tokens import TokenIds, Tokens, pad_tokens, token_ids
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.loading import FittedImages

UNKNOWN = -100
"""Label of a pair whose modality is not known."""


class Batch(NamedTuple):
    """A batch of pairs.

    Attributes:
        images: ``(B, 3, size, size)``, normalised.
        tokens: The texts.
        labels: ``(B,)``, place of the modality in ``ModelConfig.modalities``, -100 where it is not known.
        text_ids: ``(B,)``; equal numbers are equal texts.
        index: ``(B,)``, place in the split or stream.
        skipped: ``()``, pairs of a stream that could not be read, in whose place stand others.
    """

    images: Tensor
    tokens: Tokens
    labels: Tensor
    text_ids: Tensor
    index: Tensor
    skipped: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Returns the same on another device."""
        images, tokens, *others = self
        moved = (field.to(device, non_blocking=True) for field in others)
        return Batch(images.to(device, non_blocking=True), tokens.to(device), *moved)


class Item(NamedTuple):
    """One pair on its way into a batch."""

    image: Tensor
    text: TokenIds
    label: int
    text_id: int
    index: int
    skipped: int = 0


def text_id(text: str) -> int:
    """Returns a number that equal texts share, on every rank: white space and case do not count."""
    folded = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "big", signed=True)


class PairReader:
    """Turns a study into an item: image fitted and normalised, text cut, modality numbered.

    Args:
        modalities: Names of the experts' modalities.
        tokenizer: Of the text encoder.
        spec: Of the image encoder.
        text_tokens: Longest text.
    """

    def __init__(self, modalities: Sequence[str], tokenizer: Any, spec: ImageEncoderSpec, text_tokens: int) -> None:
        self.modalities = tuple(modalities)
        self.tokenizer, self.spec, self.text_tokens = tokenizer, spec, text_tokens

    def label(self, modality: str | None) -> int:
        """Returns the place of a modality.

        Raises:
            ValueError: If it is none of those that the router is taught.
        """
        if modality is None:
            return UNKNOWN
        if modality not in self.modalities:
            raise ValueError(
                f"the data hold images of the modality {modality!r}, which is none of {', '.join(self.modalities)}: "
                "name all of them with --modalities, and give at least as many --num-experts."
            )
        return self.modalities.index(modality)

    def item(self, image: np.ndarray, text: str, modality: str | None, index: int) -> Item:
        """Makes an item of one pair, its image already fitted to the encoder's square."""
        tokens = token_ids(text, self.tokenizer, self.text_tokens)
        return Item(to_tensor(image, self.spec), tokens, self.label(modality), text_id(text), index)

    def collate(self, items: Sequence[Item]) -> Batch:
        """Stacks items; texts are padded on the right to the longest."""
        return Batch(
            torch.stack([item.image for item in items]),
            pad_tokens([item.text for item in items], self.tokenizer.pad_token_id),
            torch.tensor([item.label for item in items]),
            torch.tensor([item.text_id for item in items]),
            torch.tensor([item.index for item in items]),
            torch.tensor(sum(item.skipped for item in items)),
        )


class PairDataset(Dataset[Item]):
    """A split as items of one pair each, addressed by ``(epoch, index)``.

    Images are those of :class:`~recipes.shared.loading.FittedImages`.

    Args:
        split: The pairs.
        reader: Makes the items.
        augment_seed: Seed of the augmentation; ``None`` for none.
        cache: Whether decoded images stay in memory.
        stored: Images that were decoded before, of :func:`~recipes.data.decoded_cache.fill_cache`.

    Raises:
        ValueError: If a modality is none of those that the router is taught, or a pair has no text.
    """

    def __init__(
        self,
        split: PairSplit,
        reader: PairReader,
        *,
        augment_seed: int | None = None,
        cache: bool = False,
        stored: DecodedImages | None = None,
    ) -> None:
        self.split, self.reader = split, reader
        self.images = FittedImages(split, reader.spec.size, augment_seed=augment_seed, cache=cache, stored=stored)
        for modality in sorted({m for m in split.modalities if m is not None}):
            reader.label(modality)
        if any(text is None or not text.strip() for text in split.texts):
            raise ValueError("every pair must have a text, but the split holds a study without one.")

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        image = self.images(epoch, index)
        return self.reader.item(image, str(self.split.texts[index]), self.split.modalities[index], index)


MOST_UNREADABLE = 1000
"""Pairs of a stream in a row that may be unreadable."""


class StreamDataset(Dataset[Item]):
    """A stream as items of one pair each, addressed by ``(pass, index)``.

    In place of a pair that cannot be read comes the next one that can, so that batches are full on every rank; it is
    counted. Images are augmented by seed, pass and index alone.

    Args:
        stream: The pairs.
        reader: Makes the items.
        augment_seed: Seed of the augmentation; ``None`` for none.

    Raises:
        ValueError: If a modality is none of those that the router is taught.
    """

    def __init__(self, stream: PairStream, reader: PairReader, *, augment_seed: int | None = None) -> None:
        self.stream, self.reader, self.augment_seed = stream, reader, augment_seed
        names = stream.modality_of_each()
        known = {name: reader.label(name) for name in sorted({name for name in names if name is not None})}
        self.labels = np.array([UNKNOWN if name is None else known[name] for name in names], np.int16)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        number, first = address
        reason = ""
        for skipped in range(min(len(self), MOST_UNREADABLE)):
            index = (first + skipped) % len(self)
            try:
                study = self.stream[index]
            except ValueError as error:
                reason = str(error)
                continue
            image = fit_square(study.image, self.reader.spec.size)
            if self.augment_seed is not None:
                image = augment(image, np.random.default_rng((self.augment_seed, number, index)))
            return self.reader.item(image, str(study.text), study.modality, index)._replace(skipped=skipped)
        tried = min(len(self), MOST_UNREADABLE)
        raise ValueError(f"{tried} pairs of the tars in a row cannot be read, the last since {reason}")
