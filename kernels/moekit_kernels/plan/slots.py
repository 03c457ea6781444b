"""What the kernels of the plan are started with: the slots, and the most rows of one expert."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """The expert of each slot: arguments that most kernels have."""

    ids: Tensor
    kept: Tensor | None
    num_experts: int
    top_k: int

    def arguments(self) -> dict[str, Any]:
        return {
            "ids": self.ids,
            "kept": self.kept,
            "num_slots": self.ids.numel(),
            "NUM_EXPERTS": self.num_experts,
            "TOP_K": self.top_k,
            "KEPT_K": self.top_k if self.kept is None else self.kept.shape[1],
        }


class Limit(NamedTuple):
    """Most rows of one expert, and which slots keep their place.

    Attributes:
        number: Known on the host; None for no limit, or with ``tensor``.
        tensor: The same as a tensor without dimensions, on the device.
        gates: ``(T, K)``: the larger gate keeps its place; by position where None.
    """

    number: int | None = None
    tensor: Tensor | None = None
    gates: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        return {"limit": 0 if self.number is None else self.number, "limit_at": self.tensor}

    @property
    def largest(self) -> float:
        return torch.finfo(torch.float32 if self.gates is None else self.gates.dtype).max


def block_of_experts(num_experts: int) -> int:
    """Returns how many experts one program looks at together."""
    return min(1 << num_experts.bit_length(), 1024)
