"""Starts the kernels of the plan: a counting sort of many slots, a comparison of few slots with each other."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.configs import tile_heights
from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.plan.schedule import BLOCK_T, height_arguments, schedule_arguments, schedule_bounds
from moekit_kernels.runtime import current_target, launch

FEW_SLOTS = 8192
"""Up to so many slots each is compared with all others, which is one launch where counting takes three."""

_FEW = {"BLOCK": 32, "CHUNK": 64}
_CHUNK = 16
_MOST_BINS = 4096
_PLACES = ("token_of_row", "slot_of_row", "row_of_slot")


class _Slots(NamedTuple):
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
        return {"before": self.before, "num_blocks": self.before.shape[1], "BLOCK": self.block, "CHUNK": _CHUNK}


def plan_slots(
    expert_ids: Tensor, num_experts: int, kept: Tensor | None = None, limit: Limit | None = None
) -> DispatchPlan:
    """Sorts slots by expert, stably, on the device alone.

    Args:
        expert_ids: ``(T, K)``, of an integer dtype.
        num_experts: ``E``.
        kept: ``(T, K)`` or ``(T, 1)``, bool, or None.
        limit: Most rows of one expert; none by default.

    Returns:
        The plan.

    Raises:
        ValueError: If there are ``2**31`` slots or more, or no kernel runs on their device.
    """
    heights = tile_heights(current_target(expert_ids.device))
    num_slots, top_k = expert_ids.numel(), expert_ids.shape[1]
    if num_slots >= 2**31:
        raise ValueError(f"expert_ids must have fewer than 2**31 elements, got {num_slots}: plan in several calls.")
    slots = _Slots(expert_ids.contiguous(), None if kept is None else kept.contiguous(), num_experts, top_k)
    plan = outputs(expert_ids, num_experts, heights)
    sort = _few if num_slots <= FEW_SLOTS else _many
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


def outputs(expert_ids: Tensor, num_experts: int, heights: tuple[int, ...]) -> DispatchPlan:
    """Returns an uninitialised plan, for the kernels to write, with room for the schedules of ``heights``."""
    num_tokens, top_k = expert_ids.shape

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=expert_ids.device)

    num_slots = num_tokens * top_k
    return DispatchPlan(
        token_of_row=empty(num_slots),
        slot_of_row=empty(num_slots),
        offsets=empty(num_experts + 1),
        row_of_slot=empty(num_tokens, top_k),
        tokens_per_expert=empty(num_experts),
        dropped_per_expert=empty(num_experts),
        num_tokens=num_tokens,
        tiles=torch.empty(
            schedule_bounds(num_slots, num_experts, heights)[-1], 2, dtype=torch.int32, device=expert_ids.device
        ),
    )


def _few(slots: _Slots, limit: Limit | None, plan: DispatchPlan, heights: tuple[int, ...]) -> None:
    from moekit_kernels.plan import kernel_few_rows

    row_blocks = -(-slots.ids.numel() // _FEW["BLOCK"])
    left = None
    if limit is not None:
        left = torch.empty(slots.ids.numel(), dtype=torch.int32, device=slots.ids.device)
        launch(
            kernel_few_rows.plan_few_drop_kernel,
            (row_blocks,),
            {
                **slots.arguments(),
                **limit.arguments(),
                "gates": limit.gates,
                "left": left,
                "LARGEST": limit.largest,
                **_FEW,
            },
        )
    launch(
        kernel_few_rows.plan_few_kernel,
        (row_blocks - (-(slots.num_experts + 1) // _FEW["BLOCK"]),),
        {
            **slots.arguments(),
            "left": left,
            **_outputs(plan),
            "arrivals": arrival_counters(slots.ids.device, 1),
            **height_arguments(heights),
            **_FEW,
            "BLOCK_E": _block_of_experts(slots.num_experts),
        },
    )


def _many(slots: _Slots, limit: Limit | None, plan: DispatchPlan, heights: tuple[int, ...]) -> None:
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
                (counts.before.shape[1],),
                {**slots.arguments(), **limit.arguments(), **counts.arguments(), "left": left},
                num_warps=counts.block // 64,
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


def _count(slots: _Slots, by_choice: bool, plan: DispatchPlan, routed: Tensor | None) -> _Counts:
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
            "BLOCK_E": _block_of_experts(slots.num_experts),
        },
    )
    return _Counts(block, before, totals)


def _place(slots: _Slots, plan: DispatchPlan, counts: _Counts, heights: tuple[int, ...]) -> None:
    """Puts every slot into its row, and cuts the rows into tiles of ``heights``."""
    from moekit_kernels.plan import kernel

    num_blocks, tiles = counts.before.shape[1], plan.tiles
    launch(
        kernel.plan_place_kernel,
        (num_blocks + (0 if tiles is None else tiles.shape[0] // BLOCK_T),),
        {
            **slots.arguments(),
            **counts.arguments(),
            **schedule_arguments(slots.num_experts, heights),
            **{name: getattr(plan, name) for name in ("offsets", *_PLACES)},
            "tiles": tiles,
        },
        num_warps=counts.block // 64,
    )


def _block_of_experts(num_experts: int) -> int:
    """Returns how many experts one program looks at together."""
    return min(1 << num_experts.bit_length(), 1024)


def _outputs(plan: DispatchPlan) -> dict[str, Tensor]:
    return {name: value for name, value in plan._asdict().items() if isinstance(value, Tensor)}
