"""Studies as batches of tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data.arguments import DRAWN_FLAGS, Spelling, flags_of, spelled
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.sets import CHEST_SETS, split_name
from recipes.data.decoded_cache import DecodedImages
from recipes.data.images.transforms import to_tensor
from recipes.data.images.volumes import slice_of
from recipes.data.medmnist.npz import medmnist_source
from recipes.data.phantom import phantom_hard_source, phantom_source
from recipes.data.studies import StudySource, StudySplit, images_present
from recipes.data.tables.sections import section_of, sections_of
from recipes.data.tables.studies import manifest_source
from recipes.data.tables.text_columns import text_columns
from recipes.medvlmoe.config import ChestConfig, DataConfig, ManifestConfig, TrainConfig
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


_SHARED_SETTINGS = ("text_section", "uncertain", "blank", "on_bad_image", "split_seed", "fractions")
"""Settings of `ManifestConfig` that sets of chest radiographs have too."""


_RENAMED = {
    "size": "data_size",
    "root": "data_root",
    "seed": "split_seed",
    "attribute_columns": "subgroup_columns",
}
"""Settings that are arguments of the readers under other names."""

SPELLING = Spelling(flags_of([DataConfig], renamed=_RENAMED))
"""How the arguments of the readers are typed."""

_DRAWN = Spelling({"num_contexts": "--num-contexts", **DRAWN_FLAGS})


@spelled(SPELLING)
def build_source(config: DataConfig, image_size: int, *, allow_crossing: bool = False) -> StudySource:
    """Opens the data set that ``config.data`` names.

    Args:
        config: What and how to read.
        image_size: Side at which phantoms are drawn, in pixels.
        allow_crossing: Whether a patient may lie in two splits; only to list what splits share.

    Raises:
        ValueError: If there is no such data set; the message lists the kinds there are. If the column of texts is blank
            for every training study.
    """
    if config.chest != ChestConfig() and split_name(config.data) is None:
        raise ValueError(
            f"views and official_splits are for {', '.join(CHEST_SETS)}, got data={config.data!r}: leave --views and "
            "--no-official-splits out."
        )
    if config.data in ("phantom", "phantom-hard"):
        drawn = config.phantom
        sizes = {"train": drawn.train_studies, "val": drawn.val_studies, "test": drawn.test_studies, "size": image_size}
        with spelled(_DRAWN):
            if config.data == "phantom":
                return phantom_source(**sizes)
            return phantom_hard_source(**sizes, num_contexts=drawn.num_contexts)
    chest = split_name(config.data)
    if chest is not None:
        _refuse_columns(config.manifest, chest[0])
        source = CHEST_SETS[chest[0]](chest[1], _chest_options(config, allow_crossing))
        return replace(source, notes=(*source.notes, *_section_notes(source, config)))
    name = config.data.lower()
    if name.endswith((".csv", ".csv.gz")):
        m = config.manifest
        source = manifest_source(
            config.data,
            image_column=m.image_column,
            text_column=m.text_column if config.use_text else None,
            label_columns=m.label_columns or None,
            label_column=m.label_column,
            label_separator=m.label_separator,
            negative_label=m.negative_label,
            classes=m.classes or None,
            task=m.task,
            seed=m.split_seed,
            fractions=m.fractions,
            split_column=m.split_column,
            group_column=m.group_column,
            attribute_columns=m.subgroup_columns,
            image_root=m.image_root,
            force_dicom=config.force_dicom,
            uncertain=m.uncertain,
            blank=m.blank or "ignore",
            on_bad_image=m.on_bad_image,
            allow_crossing=allow_crossing,
            blank_images=True,
        )
        _check_texts(source, config)
        return replace(source, notes=(*source.notes, *_section_notes(source, config), *_unread_texts(config)))
    if name.endswith(".npz") or (name.isidentifier() and not Path(config.data).exists()):
        return medmnist_source(config.data, size=config.data_size, root=config.data_root, download=config.download)
    raise ValueError(
        "data must be 'phantom', 'phantom-hard', a .csv, an .npz or the name of a MedMNIST set, or NAME:FOLDER with "
        f"one of {', '.join(CHEST_SETS)}, got {config.data!r}."
    )


def _refuse_columns(manifest: ManifestConfig, name: str) -> None:
    """Refuses settings that are for a csv alone."""
    unused = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(manifest)
        if field.name not in _SHARED_SETTINGS and getattr(manifest, field.name) != field.default
    ]
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: for a csv of your own, but {name} is read by its own tables. Leave it out."
        )


def _chest_options(config: DataConfig, allow_crossing: bool) -> ChestOptions:
    return ChestOptions(
        views=config.chest.views,
        uncertain=config.manifest.uncertain,
        blank=config.manifest.blank,
        official_splits=config.chest.official_splits,
        texts=config.use_text,
        on_bad_image=config.manifest.on_bad_image,
        force_dicom=config.force_dicom,
        allow_crossing=allow_crossing,
        seed=config.manifest.split_seed,
        fractions=config.manifest.fractions,
    )


@spelled(SPELLING)
def texts_of(split: StudySplit, config: DataConfig, *, whole_notes: bool = False) -> list[str | None]:
    """Returns the texts that the model may read: the chosen section of each, or none.

    Args:
        split: The studies.
        config: Whether texts are used, and which section of them.
        whole_notes: Whether a text without any header is used whole where a section is chosen.

    Raises:
        ValueError: If the split has texts, but none has the section; the message lists the headers that they have.
    """
    section = config.manifest.text_section
    if not config.use_text:
        return [None] * len(split)
    if section is None:
        return list(split.texts)
    return sections_of(split.texts, section, whole_notes=whole_notes)


def _check_texts(source: StudySource, config: DataConfig) -> None:
    """Refuses a column of texts from which a model would be trained without any."""
    column = config.manifest.text_column
    if config.use_text and column is not None and not any(source.train.texts):
        raise ValueError(
            f"{config.data}: column {column!r} is blank for all {len(source.train)} training studies, so no text would "
            "be read. Name the column that holds the texts (--text-column), or pass --no-use-text."
        )


def _unread_texts(config: DataConfig) -> list[str]:
    """Says that a csv seems to hold texts where no column of them was named."""
    m = config.manifest
    if not config.use_text or m.text_column is not None:
        return []
    known = {m.image_column, m.label_column, m.split_column, m.group_column, *m.label_columns}
    return [
        f"column {name!r} seems to hold texts, and no text is read: pass --text-column {name!r} to read it, or "
        "--no-use-text to leave it out"
        for name in text_columns(Path(config.data), known)
    ]


def _section_notes(source: StudySource, config: DataConfig) -> list[str]:
    """Says of how many texts the chosen section is read, if not of all."""
    section = config.manifest.text_section
    texts = [text for _, split in source.splits() for text in split.texts if text is not None]
    if section is None or not config.use_text or not texts:
        return []
    count = sum(section_of(text, section) is not None for text in texts)
    if count == len(texts):
        return []
    return [f"{count} of {len(texts)} texts have the section {section!r}; the other studies count as without text"]


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
