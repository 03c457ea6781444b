"""What a model is trained for, and the one loop over an epoch that every objective shares."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from recipes.shared.grad_cache import cached_backward
from recipes.shared.settings import TrainSettings
from recipes.shared.steps import begin_epoch, optimiser_steps, set_learning_rates, take_step
from recipes.shared.sums import DeviceSums, Sums
from recipes.shared.throughput import Throughput

Batch = TypeVar("Batch")


class StepLoss(NamedTuple):
    """What an objective computes for a micro-batch.

    Attributes:
        loss: The micro-batch's part of the loss of its optimiser step, a scalar with a gradient.
        sums: What the epoch adds up, on the device: sums and counts, never ratios. Every micro-batch of every rank
            has the same names and shapes.
    """

    loss: Tensor
    sums: Sums


class Objective(ABC, Generic[Batch]):
    """A loss over batches, with what an epoch records of it.

    Nothing in :meth:`counts`, :meth:`loss` and :meth:`end_step` may read a tensor's value (``float``, ``item``,
    ``tolist``, a condition): the host would wait for the device in every step. :meth:`record` reads the sums, once
    in an epoch.
    """

    @abstractmethod
    def counts(self, batch: Batch) -> Tensor:
        """Counts what the objective's means go over, such as known labels and studies.

        Args:
            batch: As it came from the loader.

        Returns:
            ``(N,)`` integers, on the device of the batch.
        """

    @abstractmethod
    def loss(self, forward: Callable[..., Any], batch: Batch, shares: Tensor) -> StepLoss:
        """Computes the loss of a micro-batch.

        Args:
            forward: The model.
            batch: On the model's device.
            shares: ``(N,)``, what the micro-batch's means count in its step; see
                :func:`~recipes.shared.steps.take_step`.
        """

    @abstractmethod
    def record(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the fields of the epoch's record, with ``train_loss``.

        Args:
            sums: Over all steps and ranks, on the CPU.
        """

    def end_step(self) -> None:  # most objectives keep nothing between steps
        """Ends an optimiser step; the weights are updated."""


class JointObjective(Objective[Batch]):
    """An objective whose loss may be one of all micro-batches of a step together, by GradCache.

    A contrast has then as many pairs to tell apart as the step has, in the memory of a micro-batch.
    """

    joint = True
    """Whether steps are trained so; else by :meth:`loss`, each micro-batch for itself."""

    @abstractmethod
    def features(self, forward: Callable[..., Any], batch: Batch) -> Any:
        """Computes what the joint loss needs of a micro-batch, and no more: it is kept for the whole step.

        Args:
            forward: The model.
            batch: On the model's device.

        Returns:
            Tensors in tuples, lists or dicts; the same structure in every call.
        """

    @abstractmethod
    def joint_loss(self, features: Sequence[Any], batches: Sequence[Batch], shares: Tensor) -> StepLoss:
        """Computes the loss of all micro-batches of a step.

        Args:
            features: Of :meth:`features`, one of each micro-batch.
            batches: The micro-batches, on the model's device but for what only :meth:`features` reads.
            shares: ``(N,)``, what the means of all these micro-batches count in the step.
        """


def train_epoch(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    batches: int,
    objective: Objective[Any],
    settings: TrainSettings,
    *,
    seed: int,
    epoch: int,
    kept_in_eval: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """Trains on a split once.

    Args:
        fabric: Of the run.
        wrapped: The model as fabric set it up.
        optimizer: The optimiser as fabric set it up.
        loader: Gives the micro-batches, which have ``labels``, one row per sample, and a method ``to``.
        batches: How many of them make the epoch.
        objective: What is minimised.
        settings: Of the training.
        seed: Of the run.
        epoch: Which one, from 0.
        kept_in_eval: Parts of the model that stay in eval mode.

    Returns:
        The epoch's record: ``epoch`` (from 1), the objective's fields, those of
        :meth:`~recipes.shared.throughput.Throughput.figures` and ``seconds``.
    """
    started = time.monotonic()
    begin_epoch(fabric, wrapped, seed, epoch, kept_in_eval)
    sums = DeviceSums()
    throughput: Throughput | None = None

    def loss_of(batch: Any, shares: Tensor) -> Tensor:
        loss, values = objective.loss(wrapped, batch.to(fabric.device), shares)
        sums.add(values)
        return loss

    def joint_backward(micro_batches: Sequence[Any], shares: Tensor) -> None:
        assert isinstance(objective, JointObjective)

        def joint_loss(features: Sequence[Any]) -> Tensor:
            loss, values = objective.joint_loss(features, micro_batches, shares.sum(0))
            sums.add(values)
            return loss

        def features(batch: Any) -> Any:
            return objective.features(wrapped, batch.to(fabric.device))

        cached_backward(fabric, wrapped, micro_batches, features, joint_loss)

    joint = isinstance(objective, JointObjective) and objective.joint
    for factor, micro_batches, throughput in optimiser_steps(fabric, loader, batches, settings, epoch):
        set_learning_rates(optimizer, factor)
        take_step(
            fabric,
            wrapped,
            optimizer,
            micro_batches,
            counts_of=objective.counts,
            loss_of=None if joint else loss_of,
            backward=joint_backward if joint else None,
            clip_norm=settings.clip_norm,
        )
        objective.end_step()
        throughput.count(sum(len(batch.labels) for batch in micro_batches))
    totals = sums.over_ranks(fabric)  # waits until the last step is done
    figures = {} if throughput is None else throughput.figures()
    return {"epoch": epoch + 1, **objective.record(totals), **figures, "seconds": time.monotonic() - started}
