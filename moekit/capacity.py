"""How many slots an expert may take."""

from fractions import Fraction
from typing import cast, overload

import torch
from torch import Tensor


class Capacity:
    """``ceil(capacity_factor * T * K / E)``, at most ``T``, in whole numbers.

    So it is exact, and the same for a Python number, a symbolic size of ``torch.export`` and a count that is
    known on the device only.

    Args:
        capacity_factor: Slots of an expert, over its equal share; positive.
        num_experts: ``E``.
        top_k: ``K``.

    Raises:
        ValueError: If ``capacity_factor`` is not a positive number.
    """

    def __init__(self, capacity_factor: float, num_experts: int, top_k: int = 1) -> None:
        if not 0 < capacity_factor < float("inf"):
            raise ValueError(f"capacity_factor must be positive, or None for no limit, got {capacity_factor}.")
        share = Fraction(capacity_factor).limit_denominator(1_000_000) * top_k / num_experts
        self.numerator, self.denominator = share.numerator, share.denominator

    @overload
    def __call__(self, num_tokens: int) -> int: ...
    @overload
    def __call__(self, num_tokens: Tensor) -> Tensor: ...
    def __call__(self, num_tokens: int | Tensor) -> int | Tensor:
        """Capacity for ``num_tokens`` tokens, a number or an integer tensor ``()``."""
        wanted = -(num_tokens * -self.numerator // self.denominator)
        if isinstance(num_tokens, Tensor):
            return torch.minimum(torch.as_tensor(wanted), num_tokens)
        return cast(int, torch.sym_min(cast(int, wanted), num_tokens))
