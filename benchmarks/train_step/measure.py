"""Steps as the recipes take them: objective, precision, clipping and optimiser are the recipe's own."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from benchmarks.timing import Step, time_steps
from benchmarks.train_step.parts import StepParts
from recipes.shared.runs import peak_memory_bytes
from recipes.shared.steps import set_learning_rates, take_step


class StepCost(NamedTuple):
    """What a training step costs.

    Attributes:
        parameters: Of the model.
        seconds: Of each timed step.
        peak_bytes: The most memory: of the GPU, or of this process with all that it has imported.
        moe_seconds: Forward and backward of the sparse layer by itself, at the step's shape and precision.
        loss: Of the last step.
    """

    parameters: int
    seconds: list[float]
    peak_bytes: int
    moe_seconds: float
    loss: float


def step_cost(
    parts_of: Callable[[Any, int, torch.device], StepParts],
    config: Any,
    *,
    device: str,
    batch_size: int,
    steps: int,
    warm_up: int,
) -> StepCost:
    """Measures training steps of a preset with random weights.

    Args:
        parts_of: The recipe's parts, from its settings, the batch size and the device.
        config: The settings; of the training, those of precision, memory and clipping are used.
        device: ``cpu`` or ``cuda``.
        batch_size: Samples of a step.
        steps: How many are timed.
        warm_up: How many come before.
    """
    settings = replace(config.train, accelerator={"cuda": "gpu"}.get(device, device))
    fabric = Fabric(accelerator=settings.accelerator, devices=1, precision=settings.precision)
    torch.manual_seed(0)
    parts = parts_of(replace(config, train=settings), batch_size, fabric.device)
    wrapped = fabric.setup_module(parts.model)
    optimizer = fabric.setup_optimizers(parts.optimizer)
    set_learning_rates(optimizer, 1.0)
    wrapped.train()
    batch = parts.batch.to(fabric.device)
    losses: list[Tensor] = []

    def loss_of(_: object, shares: Tensor) -> Tensor:
        loss = parts.objective.loss(wrapped, batch, shares).loss
        losses.append(loss.detach())
        return loss

    seconds = []
    for step in range(warm_up + steps):
        _wait(fabric.device)
        started = time.monotonic()
        take_step(
            fabric,
            wrapped,
            optimizer,
            [batch],
            counts_of=parts.objective.counts,
            loss_of=loss_of,
            clip_norm=settings.clip_norm,
        )
        parts.objective.end_step()
        _wait(fabric.device)
        if step >= warm_up:
            seconds.append(time.monotonic() - started)
    peak = peak_memory_bytes()
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    experts = Step(lambda _: parts.experts(fabric), lambda: None)
    timed = time_steps([experts], fabric.device, seconds=1.0, least=3, most=20, warm_up=1)
    return StepCost(parameters, seconds, peak, timed.median_ms / 1e3, float(losses[-1]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
