"""Starts the kernels of the plan: a counting sort of many slots; few slots take one launch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.configs import tile_heights
from moekit_kernels.plan import launches_few
from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.plan.schedule import BLOCK_T, schedule_arguments, schedule_bounds
from moekit_kernels.plan.slots import Limit, Slots, block_of_experts
from moekit_kernels.runtime import current_target, launch

FEW_SLOTS = 8192
"""Up to so many slots take one launch, where a counting sort takes three (:mod:`.launches_few`)."""

_PART = 128  # slots of a program that places them
_MOST_BINS = 4096
_PLACES = ("token_of_row", "slot_of_row", "row_of_slot")


class _Counts(NamedTuple):
    """The slots of each expert, counted in blocks of ``block`` slots.

    Attributes:
        block: Slots of a block.
        before: ``(E + 1, blocks)``, those in earlier blocks.
        totals: ``(E + 1,)``, those in all blocks.
    """

    block: int
    before: Tensor
    totals: Tensor

    def arguments(self) -> dict[str, Any]:
        return {"before": self.before, "num_blocks": self.before.shape[1], "BLOCK": self.block, "PART": _PART}


def plan_slots(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None = None,
    limit: Limit | None = None,
    memory: Mapping[str, Tensor] = MappingProxyType({}),
) -> DispatchPlan:
    """Sorts slots by expert, stably, on the device alone.

    Args:
        expert_ids: ``(T, K)``, of an integer dtype.
        num_experts: ``E``.
        kept: ``(T, K)`` or ``(T, 1)``, bool, or None.
        limit: Most rows of one expert; none by default.
        memory: Where some of the fields of :class:`~moekit_kernels.plan.RowOrder` are written, by their names.

    Returns:
        The plan.

    Raises:
        ValueError: If there are ``2**31`` slots or more, or no kernel runs on their device.
    """
    heights = tile_heights(current_target(expert_ids.device))
    num_slots, top_k = expert_ids.numel(), expert_ids.shape[1]
    if num_slots >= 2**31:
        raise ValueError(f"expert_ids must have fewer than 2**31 elements, got {num_slots}: plan in several calls.")
    slots = Slots(expert_ids.contiguous(), None if kept is None else kept.contiguous(), num_experts, top_k)
    plan = outputs(expert_ids, num_experts, heights, memory)
    few = num_slots <= FEW_SLOTS and launches_few.serves(num_slots, num_experts)
    sort = launches_few.sort if few else _many
    sort(slots, _effective(limit, num_slots), plan, heights)
    return plan


def _effective(limit: Limit | None, num_slots: int) -> Limit | None:
    """Returns the limit as the kernels read it; None if it drops no slot."""
    if limit is None:
        return None
    if limit.tensor is not None and limit.tensor.device.type == "cpu":
        limit = limit._replace(number=int(limit.tensor), tensor=None)
    if limit.tensor is None and (limit.number is None or limit.number >= num_slots):
        return None
    return limit if limit.gates is None else limit._replace(gates=limit.gates.contiguous())


def outputs(
    expert_ids: Tensor,
    num_experts: int,
    heights: tuple[int, ...],
    memory: Mapping[str, Tensor] = MappingProxyType({}),
) -> DispatchPlan:
    """Returns an uninitialised plan, for the kernels to write, with room for the schedules of ``heights``."""
    num_tokens, top_k = expert_ids.shape

    def empty(name: str, *shape: int) -> Tensor:
        return memory[name] if name in memory else torch.empty(shape, dtype=torch.int64, device=expert_ids.device)

    num_slots = num_tokens * top_k
    return DispatchPlan(
        token_of_row=empty("token_of_row", num_slots),
        slot_of_row=empty("slot_of_row", num_slots),
        offsets=empty("offsets", num_experts + 1),
        row_of_slot=empty("row_of_slot", num_tokens, top_k),
        tokens_per_expert=empty("tokens_per_expert", num_experts),
        dropped_per_expert=empty("dropped_per_expert", num_experts),
        num_tokens=num_tokens,
        tiles=memory["tiles"]
        if "tiles" in memory
        else torch.empty(
            schedule_bounds(num_slots, num_experts, heights)[-1], 2, dtype=torch.int32, device=expert_ids.device
        ),
    )


def _many(slots: Slots, limit: Limit | None, plan: DispatchPlan, heights: tuple[int, ...]) -> None:
    from moekit_kernels.plan import kernel

    routed = None
    if limit is not None:
        by_choice = limit.gates is None
        # In memory of its own, so that every launch may be repeated.
        names = ("offsets", "tokens_per_expert", "dropped_per_expert", *(() if by_choice else _PLACES))
        before = plan._replace(**{name: torch.empty_like(getattr(plan, name)) for name in names}, tiles=None)
        counts = _count(slots, by_choice, before, None)
        routed = counts.totals
        left = torch.empty(slots.ids.numel(), dtype=torch.int32, device=slots.ids.device)
        if by_choice:
            launch(
                kernel.plan_drop_late_kernel,
                (-(-slots.ids.numel() // _PART),),
                {**slots.arguments(), **limit.arguments(), **counts.arguments(), "left": left},
                num_warps=_PART // 32,
            )
        else:
            _place(slots, before, counts, ())
            launch(
                kernel.plan_drop_small_kernel,
                (-(-slots.ids.numel() // 64),),
                {
                    "ids": slots.ids,
                    "gates": limit.gates,
                    "slot_of_row": before.slot_of_row,
                    "offsets": before.offsets,
                    **limit.arguments(),
                    "left": left,
                    "num_slots": slots.ids.numel(),
                    "NUM_EXPERTS": slots.num_experts,
                    "LARGEST": limit.largest,
                    "BLOCK": 64,
                    "CHUNK": 32,
                },
            )
        slots = slots._replace(ids=left, kept=None)
    _place(slots, plan, _count(slots, False, plan, routed), heights)


def _count(slots: Slots, by_choice: bool, plan: DispatchPlan, routed: Tensor | None) -> _Counts:
    """Counts the slots in their order, or with all first choices before all second choices; computes the offsets.

    ``routed`` are the totals before slots were dropped, or None.
    """
    from moekit_kernels.plan import kernel

    block = 256 if slots.num_experts <= 1024 else 512
    num_blocks = -(-slots.ids.numel() // block)
    counts = torch.empty(slots.num_experts + 1, num_blocks, dtype=torch.int32, device=slots.ids.device)
    before = torch.empty_like(counts)
    totals = torch.empty(slots.num_experts + 1, dtype=torch.int32, device=slots.ids.device)
    bins = min(max(1 << (slots.num_experts + 1).bit_length(), 64), _MOST_BINS)
    launch(
        kernel.plan_count_kernel,
        (num_blocks, -(-(slots.num_experts + 1) // (bins - 1))),
        {
            **slots.arguments(),
            "counts": counts,
            "num_blocks": num_blocks,
            "BY_CHOICE": by_choice,
            "BLOCK": block,
            "BINS": bins,
        },
    )
    launch(
        kernel.plan_scan_kernel,
        (slots.num_experts + 1,),
        {
            "counts": counts,
            "before": before,
            "totals": totals,
            "routed": routed,
            "offsets": plan.offsets,
            "tokens_per_expert": plan.tokens_per_expert,
            "dropped_per_expert": plan.dropped_per_expert,
            "arrivals": arrival_counters(slots.ids.device, 1),
            "num_blocks": num_blocks,
            "NUM_EXPERTS": slots.num_experts,
            "BLOCK": 1024,
            "BLOCK_E": block_of_experts(slots.num_experts),
        },
    )
    return _Counts(block, before, totals)


def _place(slots: Slots, plan: DispatchPlan, counts: _Counts, heights: tuple[int, ...]) -> None:
    """Puts every slot into its row, and cuts the rows into tiles of ``heights``."""
    from moekit_kernels.plan import kernel

    num_parts, tiles = -(-slots.ids.numel() // _PART), plan.tiles
    launch(
        kernel.plan_place_kernel,
        (num_parts + (0 if tiles is None else tiles.shape[0] // BLOCK_T),),
        {
            **slots.arguments(),
            **counts.arguments(),
            **schedule_arguments(slots.num_experts, heights),
            **{name: getattr(plan, name) for name in ("offsets", *_PLACES)},
            "tiles": tiles,
        },
        num_warps=_PART // 32,
    )
