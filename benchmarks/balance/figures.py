"""What is kept of a training in a line of json: its losses and, for each layer, figures of balance over the steps."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.balance.train import Training
from moekit.inspect import LayerSummary

FIGURES = ("max_violation", "load_entropy", "prob_entropy", "confidence", "dead_experts")
"""Of :class:`~moekit.inspect.LayerSummary`."""
WIDTH = 10
"""Steps over which a figure is averaged."""


def figures_of(training: Training) -> dict[str, Any]:
    """Returns a training as numbers and strings; figures are means of those of ``WIDTH`` single steps."""
    record = training.record
    return {
        "method": training.method,
        "seed": training.seed,
        "seconds": round(training.seconds, 1),
        "validation_loss": round(training.validation_loss, 4),
        "loss": _means(training.losses),
        "layers": {name: _over_time(record.over_time(name)) for name in record.layers},
        "load": {name: [_sums(row) for row in layer.load.T.tolist()] for name, layer in record.layers.items()},
        "findings": str(record).partition("\n\n")[0].splitlines(),
    }


def _over_time(steps: Sequence[LayerSummary]) -> dict[str, list[float]]:
    return {name: _means([float(getattr(step, name)) for step in steps]) for name in FIGURES}


def _means(values: Sequence[float]) -> list[float]:
    return [round(float(part.mean()), 4) for part in torch.tensor(values).split(WIDTH)]


def _sums(values: Sequence[float]) -> list[int]:
    return [int(part.sum()) for part in torch.tensor(values).split(WIDTH)]
