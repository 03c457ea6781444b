"""One training of the small GPT: a way to balance, a seed, and a record of what the routers did at every step."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.balance.model import GPT, ModelConfig
from benchmarks.balance.text import random_starts, read_text, windows
from moekit import bias_update_rate, load_balancing_loss
from moekit.inspect import RoutingRecord, record_routing


class Method(NamedTuple):
    """A way to balance.

    Attributes:
        title: In pictures and tables.
        coefficient: Of the load-balancing loss of each layer.
        rate: Of the update of the selection bias at a step; None for routers without one.
    """

    title: str
    coefficient: float = 0.0
    rate: Callable[[int], float] | None = None


METHODS = {
    "neither": Method("neither"),
    "loss": Method("auxiliary loss, 0.01", coefficient=0.01),
    "bias": Method("bias, rate 1e-2 falling to 1e-3", rate=bias_update_rate),
    "slow-bias": Method("bias, rate 1e-3", rate=lambda step: 1e-3),
}
"""What is compared."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        model: Sizes of the model.
        steps: Number of steps.
        batch_size: Sequences in a step.
        learning_rate: Of AdamW, reached after ``warmup`` steps, then falling to a tenth.
        warmup: Steps.
        weight_decay: Of all parameters.
        clip_norm: Largest norm of the gradient.
        validation_batches: Of the size of a training batch.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    validation_batches: int = 8


class Training(NamedTuple):
    """What came out.

    Attributes:
        method: Key of ``METHODS``.
        seed: Of weights and batches.
        losses: Cross-entropy of each step, in nats per byte, without the auxiliary loss.
        validation_loss: The same after the last step, of text that was held out.
        seconds: Of the steps.
        record: Of the routers, one window for each step.
    """

    method: str
    seed: int
    losses: list[float]
    validation_loss: float
    seconds: float
    record: RoutingRecord


def train(method: str, seed: int, config: TrainConfig) -> Training:
    """Trains a model. Methods of one seed start from the same weights and see the same batches."""
    chosen = METHODS[method]
    torch.manual_seed(seed)
    model = GPT(config.model, selection_bias=chosen.rate is not None)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, config))
    text, held_out = read_text()
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    start = time.perf_counter()
    with record_routing(model, max_windows=config.steps + config.steps % 2) as record:
        bar = tqdm(range(config.steps), desc=f"{method}, seed {seed}", unit="step")
        for step in bar:
            starts = random_starts(text, config.batch_size, config.model.context, generator)
            tokens, targets = windows(text, starts, config.model.context)
            logits, statistics = model(tokens)
            loss = _cross_entropy(logits, targets)
            auxiliary_loss = sum(load_balancing_loss(stats) for stats in statistics)
            (loss + chosen.coefficient * auxiliary_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if chosen.rate is not None:
                for block, stats in zip(model.blocks, statistics, strict=True):
                    block.moe.router.update_bias_(stats.tokens_per_expert, rate=chosen.rate(step))
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    seconds = time.perf_counter() - start
    return Training(method, seed, losses, _validate(model, held_out, config), seconds, record)


@torch.no_grad()
def _validate(model: GPT, text: Tensor, config: TrainConfig) -> float:
    """Returns the mean loss of sequences that lie evenly in a text: the same for every model."""
    length, number = config.model.context, config.validation_batches
    starts = torch.linspace(0, len(text) - length - 1, number * config.batch_size).long()
    losses: list[float] = []
    for part in starts.chunk(number):
        tokens, targets = windows(text, part, length)
        losses.append(_cross_entropy(model.eval()(tokens)[0], targets).item())
    return sum(losses) / number


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _factor(step: int, config: TrainConfig) -> float:
    """Returns the learning rate of a step over the largest."""
    return min((step + 1) / config.warmup, 1 - 0.9 * step / config.steps)
