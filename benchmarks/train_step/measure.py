"""Steps as the recipe takes them: objective, precision, clipping and optimiser are the recipe's own."""

import time
from dataclasses import replace
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from benchmarks.timing import Step, time_steps
from benchmarks.train_step.model import random_batch, random_model
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.objective import DiagnosisObjective
from recipes.medvlmoe.prepare import prepare_model
from recipes.shared.runs import peak_memory_bytes
from recipes.shared.steps import set_learning_rates, take_step
from recipes.shared.weight_decay import parameter_groups


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


def step_cost(config: Config, *, device: str, batch_size: int, steps: int, warm_up: int) -> StepCost:
    """Measures training steps of a preset with random weights.

    Args:
        config: The settings; of the training, those of precision, memory and clipping are used.
        device: ``cpu`` or ``cuda``.
        batch_size: Studies of a step.
        steps: How many are timed.
        warm_up: How many come before.
    """
    settings = replace(config.train, accelerator={"cuda": "gpu"}.get(device, device))
    fabric = Fabric(accelerator=settings.accelerator, devices=1, precision=settings.precision)
    torch.manual_seed(0)
    model = random_model(config)
    prepare_model(model, settings, fabric.device)
    wrapped = fabric.setup_module(model)
    groups = parameter_groups(
        model, weight_decay=settings.weight_decay, rates={"all": settings.lr_head}, part_of=lambda name: "all"
    )
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups))
    set_learning_rates(optimizer, 1.0)
    wrapped.train()
    objective = DiagnosisObjective(model, settings)
    batch = random_batch(model, batch_size).to(fabric.device)
    losses: list[Tensor] = []

    def loss_of(_: object, shares: Tensor) -> Tensor:
        loss = objective.loss(wrapped, batch, shares).loss
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
            counts_of=objective.counts,
            loss_of=loss_of,
            clip_norm=settings.clip_norm,
        )
        objective.end_step()
        _wait(fabric.device)
        if step >= warm_up:
            seconds.append(time.monotonic() - started)
    peak = peak_memory_bytes()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    moe = _moe_seconds(fabric, model.experts, batch_size, 2 * config.model.dim)
    return StepCost(parameters, seconds, peak, moe, float(losses[-1]))


def _moe_seconds(fabric: Fabric, layer: torch.nn.Module, rows: int, width: int) -> float:
    """Times forward and backward of the sparse layer, on as many rows as there are studies."""
    x = torch.randn(rows, width, device=fabric.device, requires_grad=True)

    def body(_: object) -> None:
        with fabric.autocast():
            output, _stats = layer(x)
        output.float().sum().backward()

    step = Step(body, lambda: layer.zero_grad(set_to_none=True))
    return time_steps([step], fabric.device, seconds=1.0, least=3, most=20, warm_up=1).median_ms / 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
