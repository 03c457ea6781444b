"""Stacked matrices as integers of 8 bits with one scale for each output."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LARGEST = 127
"""Largest integer, and its negative the smallest: the range is symmetric, and zero stays zero."""


class Int8Weight(NamedTuple):
    """Stacked matrices ``scale * values``.

    Attributes:
        values: Integers from -127 to 127.
        scale: One factor for each output of each expert, float32.
    """

    values: Int8[Tensor, "E F D"]
    scale: Float[Tensor, "E F"]


@torch.no_grad()
def quantize(weight: Float[Tensor, "E F D"]) -> Int8Weight:
    """Rounds stacked matrices to ``scale * values``, where ``scale = max |weight| / 127`` over the inputs of an output.

    The error of a weight is at most half its scale. One expert at a time, so that no second copy of all is made in a
    wider dtype.

    Args:
        weight: Floating; its layout is kept.

    Returns:
        Integers in the layout of ``weight``, and scales. Outputs without a weight other than zero have the scale 1.

    Raises:
        ValueError: If ``weight`` is not floating, not ``(E, F, D)``, or holds numbers that are not finite.
    """
    if weight.ndim != 3 or not weight.is_floating_point():
        raise ValueError(f"weight must be floating, of shape (E, F, D), got {weight.dtype} {tuple(weight.shape)}.")
    values = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.ones(weight.shape[:2], dtype=torch.float32, device=weight.device)
    for expert, matrix in enumerate(weight):
        wide = matrix.to(torch.promote_types(weight.dtype, torch.float32))
        largest = wide.abs().amax(-1) if wide.shape[-1] else wide.new_zeros(wide.shape[0])
        if not weight.is_meta and not bool(largest.isfinite().all()):
            raise ValueError(f"weight must be finite to be quantised, got inf or NaN in expert {expert}.")
        step = torch.where(largest > 0, largest / LARGEST, 1)
        scale[expert] = step
        values[expert] = (wide / step.unsqueeze(-1)).round().clamp(-LARGEST, LARGEST)
    return Int8Weight(values, scale)


def dequantize(
    values: Int8[Tensor, "... F D"], scale: Float[Tensor, "... F"], dtype: torch.dtype
) -> Float[Tensor, "... F D"]:
    """Returns ``scale * values``, each number rounded once to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    return (values.to(wide) * scale.unsqueeze(-1).to(wide)).to(dtype)
