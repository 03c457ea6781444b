"""The plan of few slots on CPU: counted in Python, which takes a third of the time of as many small tensor operations.

Same bits as :func:`~moekit_kernels.plan.reference.plan_dispatch_reference` without mask and capacity.
"""

from array import array
from itertools import accumulate, chain
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from moekit_kernels.eager import can_read
from moekit_kernels.plan.dispatch_plan import DispatchPlan

# Twice the slots and the experts, up to which Python is faster; measured in µs in a layer, Python against tensor
# operations, by slots of experts: 22 and 60 (2 of 8), 29 and 60 (32 of 8), 37 and 61 (64 of 8, 8 of 128).
_MOST = 320


def few_slots(expert_ids: Tensor, num_experts: int) -> bool:
    """Returns whether :func:`plan_few_slots` is the fastest way here, and may read the ids."""
    # In this order: of a symbolic number of slots, as in export, nothing may be asked.
    return can_read(expert_ids) and 2 * expert_ids.numel() + num_experts <= _MOST


def plan_few_slots(expert_ids: Int[Tensor, "T K"], num_experts: int) -> DispatchPlan | None:
    """Sorts slots by expert, stably; returns None if an id is out of range."""
    num_tokens, top_k = expert_ids.shape
    ids = list(chain(*cast(list[list[int]], expert_ids.tolist())))
    counts = [0] * num_experts
    for expert in ids:
        if not 0 <= expert < num_experts:
            return None
        counts[expert] += 1
    num_slots = len(ids)
    slot_of_row = sorted(range(num_slots), key=ids.__getitem__)
    row_of_slot = [0] * num_slots
    for row, slot in enumerate(slot_of_row):
        row_of_slot[slot] = row
    token_of_row = [slot // top_k for slot in slot_of_row]
    offsets, dropped = accumulate(counts, initial=0), [0] * num_experts
    numbers = array("q", [*token_of_row, *slot_of_row, *offsets, *row_of_slot, *counts, *dropped])
    sizes = [num_slots, num_slots, num_experts + 1, num_slots, num_experts, num_experts]
    # "Unsafe": each part counts its own changes, so adding to counts in place does not disturb what autograd keeps.
    parts = torch.unsafe_split_with_sizes(torch.frombuffer(numbers, dtype=torch.int64), sizes)
    tokens, slots, bounds, rows, routed, none_dropped = parts
    return DispatchPlan(tokens, slots, bounds, rows.view(num_tokens, top_k), routed, none_dropped, num_tokens)
