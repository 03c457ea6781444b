"""What a recipe brings to a measured step: its model, its loss, its optimiser and a drawn batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.objective import Objective


class StepParts(NamedTuple):
    """Parts of a training step, before a strategy wraps them.

    Attributes:
        model: With random weights, its encoders prepared by the settings.
        objective: What is minimised.
        batch: On the CPU.
        optimizer: Over the model's weights.
        experts: Computes the sparse layer by itself, forward and backward, at the step's shape.
    """

    model: nn.Module
    objective: Objective[Any]
    batch: Any
    optimizer: torch.optim.Optimizer
    experts: Callable[[Fabric], None]
