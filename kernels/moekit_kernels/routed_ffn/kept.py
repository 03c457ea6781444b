"""What the operation of a whole layer keeps for its backward pass.

Compiled code checks, saves and passes on each kept tensor, which takes some 4 µs. So all that is not as large as the
experts' rows is in two tensors, of which kernels write and read parts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.plan.dispatch_plan import RowOrder


class Sizes(NamedTuple):
    """What the lengths follow from.

    Attributes:
        num_tokens: ``T``.
        num_experts: ``E``.
        top_k: ``K``.
        num_tiles: Rows of the plan's ``tiles``.
    """

    num_tokens: int
    num_experts: int
    top_k: int
    num_tiles: int

    @property
    def num_integers(self) -> int:
        """Length of the integers."""
        return self._places()[-1]

    @property
    def num_floats(self) -> int:
        """Length of the floats."""
        return _aligned(self.num_tokens * self.num_experts, torch.float32) + self.num_tokens * self.top_k

    def _places(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Returns where ids, the four tensors of the plan's indices, tiles and valid rows begin, and the end."""
        slots = _aligned(self.num_tokens * self.top_k, torch.int64)
        tiles = 4 * slots + _aligned(self.num_experts + 1, torch.int64)
        valid = tiles + _aligned(self.num_tiles, torch.int64)
        return 0, slots, 2 * slots, 3 * slots, 4 * slots, tiles, valid, valid + -(-self.num_tokens // 8)

    def parts(self, integers: Int[Tensor, "integers"], floats: Float[Tensor, "floats"]) -> "Parts":
        """Returns the parts as views."""
        num_slots, tokens, experts = self.num_tokens * self.top_k, self.num_tokens, self.num_experts
        ids, token_of_row, slot_of_row, row_of_slot, offsets, tiles, valid, _ = self._places()

        def slots(begin: int) -> Tensor:
            return integers.narrow(0, begin, num_slots)

        return Parts(
            ids=slots(ids).view(tokens, self.top_k),
            order=RowOrder(
                slots(token_of_row),
                slots(slot_of_row),
                integers.narrow(0, offsets, experts + 1),
                slots(row_of_slot).view(tokens, self.top_k),
                integers.narrow(0, tiles, self.num_tiles).view(torch.int32).view(self.num_tiles, 2),
            ),
            valid=integers.narrow(0, valid, -(-tokens // 8)).view(torch.bool).narrow(0, 0, tokens),
            logits=floats.narrow(0, 0, tokens * experts).view(tokens, experts),
            gates=floats.narrow(0, _aligned(tokens * experts, torch.float32), num_slots).view(tokens, self.top_k),
        )


class Parts(NamedTuple):
    """The decisions of the router and their order.

    Attributes:
        ids: ``(T, K)``, the chosen experts.
        order: The indices of the plan.
        valid: ``(T,)``, False for a token with non-finite logits.
        logits: ``(T, E)``, finite.
        gates: ``(T, K)``.
    """

    ids: Int[Tensor, "T K"]
    order: RowOrder
    valid: Bool[Tensor, "T"]
    logits: Float[Tensor, "T E"]
    gates: Float[Tensor, "T K"]

    def memory(self) -> dict[str, Tensor]:
        """Returns the parts by the names that the launches of router and plan know."""
        named = {"ids": self.ids, "valid": self.valid, "logits": self.logits, "gates": self.gates}
        return named | {name: t for name, t in self.order._asdict().items() if t is not None}


class Kept(NamedTuple):
    """All that is kept; the last two only where they are.

    Attributes:
        integers: int64; see :meth:`Sizes.parts`.
        floats: float32.
        pre: ``(N, F1)``, pre-activations.
        hidden: ``(N, F)``, hidden rows.
    """

    integers: Int[Tensor, "integers"]
    floats: Float[Tensor, "floats"]
    pre: Float[Tensor, "N F1"] | None
    hidden: Float[Tensor, "N F"] | None


def _aligned(count: int, dtype: torch.dtype) -> int:
    """Rounds up to 16 bytes, for which kernels are compiled; what lies between two parts is not written."""
    step = 16 // dtype.itemsize
    return -(-count // step) * step
