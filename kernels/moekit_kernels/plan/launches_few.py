"""Starts the plan of few slots: one launch, and one before it where experts have a most number of rows."""

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.plan.schedule import BLOCK_T, height_arguments
from moekit_kernels.plan.slots import Limit, Slots, block_of_experts
from moekit_kernels.runtime import launch

COMPARED_SLOTS = 256
"""Up to so many slots are compared with each other; more are counted by every program.

A comparison goes through all slots in steps of 64, each of which took 0.9 us on an H200 (118 us for 8192 slots);
counting adds a histogram, a running sum and a gather, some 2 us by their instructions, and then hardly grows.
"""

COMPARED_WITH_MANY_EXPERTS = 1024
"""The same where experts are too many for a histogram: more slots than these take three launches."""

_MOST_BINS = 1024  # of a histogram that one program holds in registers, beside the one of the slots before its own
_COMPARE = {"BLOCK": 32, "CHUNK": 64}
_DROP = {"BLOCK": 32, "CHUNK": 128}  # as many others as threads, so that each is loaded once
_COUNT = {"PART": 128, "CHUNK": 2048}
_COUNT_WARPS = 8


def serves(num_slots: int, num_experts: int) -> bool:
    """Returns whether few slots are sorted here at all; with very many experts three launches cost less."""
    return num_slots <= COMPARED_WITH_MANY_EXPERTS or _bins(num_experts) <= _MOST_BINS


def sort(slots: Slots, limit: Limit | None, plan: DispatchPlan, heights: tuple[int, ...]) -> None:
    """Writes ``plan``, with the schedules of ``heights``."""
    bins = _bins(slots.num_experts)
    if slots.ids.numel() <= (COMPARED_SLOTS if bins <= _MOST_BINS else COMPARED_WITH_MANY_EXPERTS):
        left = None if limit is None else _drop_by_comparison(slots, limit)
        _compare(slots, left, plan, heights)
        return
    if limit is None:
        left = None
    elif limit.gates is None:
        left = _drop_by_counting(slots, limit, bins)
    else:
        left = _drop_by_comparison(slots, limit)
    _count(slots, left, plan, heights, bins)


def _bins(num_experts: int) -> int:
    """Returns the bins of a histogram: one for each expert, for unassigned slots, and for what is no slot."""
    return max(1 << (num_experts + 1).bit_length(), 64)


def _drop_by_comparison(slots: Slots, limit: Limit) -> Tensor:
    """Returns the expert of each slot, with those over the limit unassigned."""
    from moekit_kernels.plan import kernel_few_rows

    left = torch.empty(slots.ids.numel(), dtype=torch.int32, device=slots.ids.device)
    launch(
        kernel_few_rows.plan_few_drop_kernel,
        (-(-slots.ids.numel() // _DROP["BLOCK"]),),
        {
            **slots.arguments(),
            **limit.arguments(),
            "gates": limit.gates,
            "left": left,
            "LARGEST": limit.largest,
            **_DROP,
        },
    )
    return left


def _drop_by_counting(slots: Slots, limit: Limit, bins: int) -> Tensor:
    """Returns the same as :func:`_drop_by_comparison`, for a limit without gates."""
    from moekit_kernels.plan import kernel_count_all

    left = torch.empty(slots.ids.numel(), dtype=torch.int32, device=slots.ids.device)
    launch(
        kernel_count_all.plan_count_all_drop_kernel,
        (-(-slots.ids.numel() // _COUNT["PART"]),),
        {**slots.arguments(), **limit.arguments(), "left": left, **_COUNT, "BINS": bins},
        num_warps=_COUNT_WARPS,
    )
    return left


def _compare(slots: Slots, left: Tensor | None, plan: DispatchPlan, heights: tuple[int, ...]) -> None:
    from moekit_kernels.plan import kernel_few_rows

    block = _COMPARE["BLOCK"]
    launch(
        kernel_few_rows.plan_few_kernel,
        (-(-slots.ids.numel() // block) - (-(slots.num_experts + 1) // block),),
        {
            **slots.arguments(),
            "left": left,
            **_outputs(plan),
            "arrivals": arrival_counters(slots.ids.device, 1),
            **height_arguments(heights),
            **_COMPARE,
            "BLOCK_E": block_of_experts(slots.num_experts),
        },
    )


def _count(slots: Slots, left: Tensor | None, plan: DispatchPlan, heights: tuple[int, ...], bins: int) -> None:
    from moekit_kernels.plan import kernel_count_all

    num_entries = 0 if plan.tiles is None else plan.tiles.shape[0]
    launch(
        kernel_count_all.plan_count_all_kernel,
        (-(-slots.ids.numel() // _COUNT["PART"]) + num_entries // BLOCK_T + 1,),
        {
            **slots.arguments(),
            "left": left,
            **_outputs(plan),
            **height_arguments(heights),
            **_COUNT,
            "BINS": bins,
            "BLOCK_T": BLOCK_T,
        },
        num_warps=_COUNT_WARPS,
    )


def _outputs(plan: DispatchPlan) -> dict[str, Tensor]:
    return {name: value for name, value in plan._asdict().items() if isinstance(value, Tensor)}
