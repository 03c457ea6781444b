"""How experts start from the MLP that they are made of."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from moekit.interop.upcycling.mlp import MLPWeights


class UpcyclingMethod(ABC):
    """Makes the weights of one expert from those of the MLP, or of its shard.

    Attributes:
        exact: Whether the experts compute what the MLP does.
    """

    exact: bool = False

    @abstractmethod
    def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
        """Returns the weights of one expert.

        Args:
            weights: Those of the MLP, or of its shard, which must stay as they are.
            generator: Of the random numbers; the default one of the weights' device if None.
        """


@final
@dataclass(frozen=True)
class Copies(UpcyclingMethod):
    """Every expert is a copy. The model computes at first what it did; the router makes the experts differ.

    Reference:
        Komatsuzaki et al. 2023, Sparse Upcycling, https://arxiv.org/abs/2212.05055.
    """

    exact = True

    def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
        """Returns the weights themselves."""
        return weights


@final
@dataclass(frozen=True)
class Noise(UpcyclingMethod):
    """Every expert is a copy with normal noise on each matrix; biases stay.

    The model does not compute what it did, but about so: each matrix differs by noise of the relative size ``std``.

    Args:
        std: Standard deviation of the noise, in standard deviations of the matrix.

    Raises:
        ValueError: If ``std`` is negative.
    """

    std: float

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"std of Noise must be at least 0, got {self.std}.")

    def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
        """Returns the weights with noise."""
        up, down = (each + self.std * each.std() * _normal(each, generator) for each in (weights.up, weights.down))
        return weights._replace(up=up, down=down)


@final
@dataclass(frozen=True)
class DropUpcycling(UpcyclingMethod):
    """Every expert is a copy in which a share of the hidden units, drawn for each expert, is drawn anew.

    The rows of the gate, of the values and the columns of the last matrix that belong to these units, and their biases,
    are drawn from normal distributions, each with the mean and standard deviation of what it replaces. The model does
    not compute what it did: with ``ratio=0.5`` half of each expert is new, so the loss first rises, and
    then falls below that of copies, which stay alike.

    Args:
        ratio: Share of the hidden units, 0 to 1; the paper's best is 0.5. Their number is rounded down.

    Raises:
        ValueError: If ``ratio`` is out of range.

    Reference:
        Nakamura et al. 2025, Drop-Upcycling, https://arxiv.org/abs/2502.19261. Its models have no biases.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio of DropUpcycling must be from 0 to 1, got {self.ratio}.")

    def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
        """Returns the weights with a share of the units drawn anew."""
        hidden_dim, device = weights.hidden_dim, weights.down.device
        on = device if generator is None else generator.device
        units = torch.randperm(hidden_dim, generator=generator, device=on)[: int(self.ratio * hidden_dim)].to(device)
        up, down, up_bias = weights.up.clone(), weights.down.clone(), weights.up_bias
        up_bias = None if up_bias is None else up_bias.clone()
        for first_row in (0, hidden_dim) if weights.gated else (0,):
            for rows in (up, up_bias):
                if rows is not None:
                    rows[first_row + units] = _like(rows[first_row + units], generator)
        down[:, units] = _like(down[:, units], generator)
        return weights._replace(up=up, down=down, up_bias=up_bias)


def shards(weights: MLPWeights, granularity: int) -> Sequence[MLPWeights]:
    """Splits an MLP into equal parts of its hidden layer, whose outputs add up to its output."""
    up = _split_rows(weights.up, weights, granularity)
    bias = None if weights.up_bias is None else _split_rows(weights.up_bias, weights, granularity)
    down = weights.down.chunk(granularity, dim=1)
    down_bias = None if weights.down_bias is None else weights.down_bias / granularity
    return [MLPWeights(up[s], down[s], None if bias is None else bias[s], down_bias) for s in range(granularity)]


def joined(parts: Sequence[MLPWeights]) -> MLPWeights:
    """Returns the MLP whose :func:`shards` these are."""
    first = parts[0]
    up = _join_rows([part.up for part in parts], first)
    up_bias = None if first.up_bias is None else _join_rows(_all(part.up_bias for part in parts), first)
    down_bias = None if first.down_bias is None else torch.stack(_all(part.down_bias for part in parts)).sum(0)
    return MLPWeights(up, torch.cat([part.down for part in parts], dim=1), up_bias, down_bias)


def _all(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def _split_rows(rows: Tensor, weights: MLPWeights, granularity: int) -> list[Tensor]:
    halves = rows.chunk(2) if weights.gated else (rows,)
    return [torch.cat(parts) for parts in zip(*(half.chunk(granularity) for half in halves), strict=True)]


def _join_rows(parts: Sequence[Tensor], first: MLPWeights) -> Tensor:
    if not first.gated:
        return torch.cat(list(parts))
    gates, values = zip(*(part.chunk(2) for part in parts), strict=True)
    return torch.cat([*gates, *values])


def _like(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws a tensor of the mean and standard deviation of another one."""
    if weight.numel() < 2:
        return weight
    return weight.mean() + weight.std() * _normal(weight, generator)


def _normal(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    device = weight.device if generator is None else generator.device
    noise = torch.randn(weight.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.to(weight)
