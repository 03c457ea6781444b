"""Capacity: the number of slots that an expert may take."""

from fractions import Fraction
from typing import cast, overload

import torch
from torch import Tensor


class Capacity:
    """Computes ``ceil(capacity_factor * T * K / E)``, at most ``T``, in whole numbers.

    So it is exact, and the same for a Python number, a symbolic size of ``torch.export`` and a count that is
    known on the device only.

    Args:
        capacity_factor: Slots of an expert, over its equal share; positive.

    Raises:
        ValueError: If ``capacity_factor`` is not a positive number.
    """

    def __init__(self, capacity_factor: float) -> None:
        if not 0 < capacity_factor < float("inf"):
            raise ValueError(f"capacity_factor must be positive, or None for no limit, got {capacity_factor}.")
        precision = 1_000_000
        factor = max(Fraction(capacity_factor).limit_denominator(precision), Fraction(1, precision))
        self.numerator, self.denominator = factor.numerator, factor.denominator

    @overload
    def __call__(self, num_tokens: int, num_experts: int, top_k: int = 1) -> int: ...
    @overload
    def __call__(self, num_tokens: Tensor, num_experts: int, top_k: int = 1) -> Tensor: ...
    def __call__(self, num_tokens: int | Tensor, num_experts: int, top_k: int = 1) -> int | Tensor:
        """Returns the capacity of one expert.

        Args:
            num_tokens: ``T``, a number or an integer tensor ``()``.
            num_experts: ``E``.
            top_k: ``K``.
        """
        share = self.denominator * num_experts
        # Not -(-a // b): ONNX rounds the division of a negative number towards zero.
        slots = (num_tokens * (self.numerator * top_k) + share - 1) // share
        if isinstance(num_tokens, Tensor):
            return torch.minimum(torch.as_tensor(slots), num_tokens)
        # The compiler traces min() of symbolic and of constant sizes; torch.sym_min of constants fails in torch 2.11.
        # torch.export without the compiler needs torch.sym_min, or the comparison would fix the size.
        if torch.compiler.is_dynamo_compiling():
            return min(cast(int, slots), num_tokens)
        return cast(int, torch.sym_min(cast(int, slots), num_tokens))
