"""The contrastive stage of a run: its settings, and the pairs of images and texts that it sees."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from recipes.data.studies import StudySource, StudySplit, images_present
from recipes.medvlmoe.baselines.config import Objective, has_contrastive_stage
from recipes.medvlmoe.baselines.prompts import texts_of_labels
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import StudyDataset
from recipes.medvlmoe.sources import texts_of

STAGE = "contrastive"
"""Folder, in that of a run, of the run that its encoders come from."""


def contrastive_stage(config: Config) -> Config | None:
    """Returns the settings of the stage that a run begins with: a run of its own, in ``OUT/contrastive``.

    The stage trains the whole image encoder, also where the classifier then keeps it frozen or adapts it.

    Args:
        config: Of the run.

    Returns:
        ``None`` for a run that has no such stage, or has passed it.
    """
    model, train = config.model, config.train
    passed = (config.out / "checkpoints" / "last.ckpt").exists()
    if passed or not has_contrastive_stage(model.classifier, model.contrast):
        return None
    stage = {
        "epochs": train.contrast_epochs,
        "lr_encoder": train.contrast_lr,
        "lr_head": train.contrast_lr,
        "class_weights": "none",
        "drop_image": 0.0,
        "drop_text": 0.0,
        "expert_parallel": 1,  # it has no experts
    }
    return replace(
        config,
        out=config.out / STAGE,
        model=replace(model, classifier="none", image_tuning="full"),
        train=replace(train, **stage),
    )


def pair_texts(split: StudySplit, source: StudySource, config: Config) -> list[str | None]:
    """Returns the texts that the images of a split are contrasted with.

    They are those that the data set brings. Where no training study has one, or texts are not used, they are made of
    the labels (:func:`~recipes.medvlmoe.baselines.prompts.texts_of_labels`): a contrast supervised by them.

    Args:
        split: Training or validation studies.
        source: The data set.
        config: The settings.
    """
    if _has_reports(source, config):
        return texts_of(split, config.data)
    return texts_of_labels(split.labels, source.classes, source.task, config.model.contrast)


def pair_note(source: StudySource, config: Config) -> str:
    """Says what images are contrasted with, as a line of the data's summary."""
    texts = pair_texts(source.train, source, config)
    if _has_reports(source, config):
        count = sum(bool(text and text.strip()) for text in texts)
        return f"\n  contrast: {count:,} of {len(texts):,} training studies have a text"
    example = next((text for text in texts if text), "")
    return f"\n  contrast: no texts, so they are made of the labels, such as {example!r}"


class PairRows(Dataset[Any]):
    """Some studies of a data set, addressed by ``(epoch, row)``.

    Args:
        dataset: All studies of a split.
        rows: Places in the split of those to keep.
    """

    def __init__(self, dataset: StudyDataset, rows: Sequence[int]) -> None:
        self.dataset, self.rows, self.stack = dataset, rows, dataset.stack

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, address: tuple[int, int]) -> Any:
        epoch, row = address
        return self.dataset[epoch, self.rows[row]]


def paired(dataset: StudyDataset, texts: Sequence[str | None], objective: Objective) -> PairRows:
    """Keeps the studies that take part in a contrast: those with an image and a text; for medclip, with an image."""
    return PairRows(dataset, _rows(dataset.split, texts, text_needed=objective != "medclip"))


def check_pairs(split: StudySplit, texts: Sequence[str | None], objective: Objective) -> None:
    """Refuses a training split in which there is nothing to tell apart.

    Raises:
        ValueError: If fewer than two studies have an image and a text.
    """
    count = len(_rows(split, texts, text_needed=True))
    if count < 2:
        raise ValueError(
            f"the objective {objective!r} needs at least 2 training studies with an image and a text, got {count}: "
            "name the column of texts (--text-column), or pass --no-use-text to contrast images with texts made of "
            "labels."
        )


def _rows(split: StudySplit, texts: Sequence[str | None], *, text_needed: bool) -> list[int]:
    return [
        row
        for row, (text, has_image) in enumerate(zip(texts, images_present(split), strict=True))
        if has_image and (not text_needed or (text and text.strip()))
    ]


def _has_reports(source: StudySource, config: Config) -> bool:
    """Tells whether a contrast reads texts of the data set, rather than texts made of labels."""
    return any(text and text.strip() for text in texts_of(source.train, config.data))
