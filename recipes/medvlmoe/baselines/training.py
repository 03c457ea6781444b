"""Epochs of contrast: the pairs of a data set, one pass over them, and their loss on the validation split."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipes.data.studies import StudySource, StudySplit, images_present
from recipes.medvlmoe.baselines.config import Objective, has_contrastive_stage
from recipes.medvlmoe.baselines.model import PairModel
from recipes.medvlmoe.baselines.objectives import PairLosses, hashed_texts, pair_losses
from recipes.medvlmoe.baselines.prompts import texts_of_labels
from recipes.medvlmoe.config import Config, TrainConfig
from recipes.medvlmoe.data import Batch, StudyDataset, texts_of
from recipes.shared.training import begin_epoch, optimiser_steps, set_learning_rates, sum_over_ranks, take_step

STAGE = "contrastive"
"""Folder, in that of a run, of the run that its encoders come from."""


def contrastive_stage(config: Config) -> Config | None:
    """Returns the settings of the stage that a run begins with: a run of its own, in ``OUT/contrastive``.

    Args:
        config: Of the run.

    Returns:
        ``None`` for a run that has no such stage, or has passed it.
    """
    model, train = config.model, config.train
    passed = (config.out / "checkpoints" / "last.ckpt").exists()
    if passed or not has_contrastive_stage(model.classifier, model.contrast):
        return None
    return replace(
        config,
        out=config.out / STAGE,
        model=replace(model, classifier="none"),
        train=replace(
            train,
            epochs=train.contrast_epochs,
            lr_encoder=train.contrast_lr,
            lr_head=train.contrast_lr,
            class_weights="none",
            drop_image=0.0,
            drop_text=0.0,
        ),
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
    if reads_reports(source, config):
        return texts_of(split, config.data)
    return texts_of_labels(split.labels, source.classes, source.task, config.model.contrast)


def reads_reports(source: StudySource, config: Config) -> bool:
    """Tells whether a contrast reads texts of the data set, rather than texts made of labels."""
    return any(text and text.strip() for text in texts_of(source.train, config.data))


def pair_note(source: StudySource, config: Config) -> str:
    """Says what images are contrasted with."""
    texts = pair_texts(source.train, source, config)
    count = sum(bool(text and text.strip()) for text in texts)
    if reads_reports(source, config):
        return f"\n  contrast: {count:,} of {len(texts):,} training studies have a text"
    example = next((text for text in texts if text), "")
    return f"\n  contrast: no texts, so they are made of the training labels, such as {example!r}"


class PairRows(Dataset[Any]):
    """Some studies of a data set, addressed by ``(epoch, row)``.

    Args:
        dataset: All studies of a split.
        rows: Places in the split of those to keep.
    """

    def __init__(self, dataset: StudyDataset, rows: Sequence[int]) -> None:
        self.dataset, self.rows, self.spec = dataset, rows, dataset.spec

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, address: tuple[int, int]) -> Any:
        epoch, row = address
        return self.dataset[epoch, self.rows[row]]


def pair_rows(split: StudySplit, texts: Sequence[str | None], objective: Objective) -> list[int]:
    """Returns the studies that take part in a contrast: those with an image and a text; for medclip, with an image."""
    return [
        row
        for row, (text, has_image) in enumerate(zip(texts, images_present(split), strict=True))
        if has_image and (objective == "medclip" or (text and text.strip()))
    ]


def check_pairs(split: StudySplit, texts: Sequence[str | None], objective: Objective) -> None:
    """Refuses a training split in which there is nothing to tell apart.

    Raises:
        ValueError: If fewer than two studies have an image and a text.
    """
    count = len(pair_rows(split, texts, "clip"))
    if count < 2:
        raise ValueError(
            f"the objective {objective!r} needs at least 2 training studies with an image and a text, got {count}: "
            "name the column of texts (--text-column), or pass --no-use-text to contrast images with texts made of "
            "labels."
        )


class PairObjective(nn.Module):
    """The loss of a batch of pairs, as what is trained: its forward calls the model, whatever wraps it.

    Args:
        model: The model.
    """

    def __init__(self, model: PairModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, *, gather: bool = False) -> PairLosses:
        """Computes the losses of a batch."""
        features = self.model.pairs(batch.images, batch.input_ids, batch.text_mask)
        return pair_losses(
            self.model.config.contrast,
            features,
            batch.labels,
            batch.text_mask.any(1),
            hashed_texts(batch.input_ids, batch.text_mask),
            gather=gather,
        )


def contrast_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    settings: TrainConfig,
    seed: int,
    epoch: int,
) -> dict[str, Any]:
    """Trains on all training pairs once; the counterpart of an epoch of a classifier.

    A contrast has only the pairs of its own micro-batch to tell apart (on all ranks, where it gathers): accumulating
    does not make its batch larger.

    Args:
        fabric: Of the run.
        wrapped: A :class:`PairObjective` as fabric set it up.
        optimizer: Its optimiser.
        loader: Of :class:`~recipes.medvlmoe.data.Batch`.
        settings: Of the training.
        seed: Of the run.
        epoch: Which one.

    Returns:
        The epoch's record.
    """
    started = time.monotonic()
    loader.batch_sampler.epoch = epoch
    begin_epoch(fabric, wrapped, seed, epoch)
    gather = fabric.world_size > 1
    sums = torch.zeros(len(PairLosses._fields) + 1, device=fabric.device)

    def loss_of(batch: Batch, shares: Tensor) -> Tensor:
        losses = wrapped(batch.to(fabric.device), gather=gather)
        _add(sums, losses, len(batch.labels))
        return shares[0] * losses.total

    for factor, micro_batches in optimiser_steps(fabric, loader, len(loader), settings, epoch):
        set_learning_rates(optimizer, factor)
        take_step(
            fabric,
            wrapped,
            optimizer,
            micro_batches,
            counts_of=lambda batch: (len(batch.labels),),
            loss_of=loss_of,
            clip_norm=settings.clip_norm,
        )
    rates = {group["part"]: float(group["lr"]) for group in optimizer.param_groups}
    (total, *parts), _ = _means(fabric, sums)
    return {
        "epoch": epoch,
        "train_loss": total,
        **dict(zip(PairLosses._fields[1:], parts, strict=True)),
        "lr_encoder": rates.get("encoder"),
        "lr_head": rates.get("head"),
        "seconds": time.monotonic() - started,
    }


@torch.no_grad()
def validate_pairs(fabric: Fabric, model: PairModel, loader: Any) -> dict[str, Any]:
    """Computes the contrast on the validation split, gathered from all ranks; each contrasts its own batches.

    Returns:
        ``val_loss``; ``None`` where no validation study has a text.
    """
    training = model.training
    objective = PairObjective(model).eval()
    sums = torch.zeros(len(PairLosses._fields) + 1, device=fabric.device)
    with fabric.autocast():
        for batch in loader:
            _add(sums, objective(batch.to(fabric.device)), len(batch.labels))
    model.train(training)
    means, pairs = _means(fabric, sums)
    return {"val_loss": means[0] if pairs else None}


def _add(sums: Tensor, losses: PairLosses, pairs: int) -> None:
    """Adds a batch to sums over pairs, on the device."""
    sums += pairs * torch.stack([*(loss.detach().float() for loss in losses), torch.ones((), device=sums.device)])


def _means(fabric: Fabric, sums: Tensor) -> tuple[list[float], float]:
    """Returns means over the pairs of all ranks, and how many pairs there were."""
    *totals, pairs = sum_over_ranks(fabric, sums.cpu().double())
    return [total / max(1.0, pairs) for total in totals], pairs
