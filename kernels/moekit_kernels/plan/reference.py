"""The plan by sorting: plain PyTorch, on any device."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.plan.dispatch_plan import DispatchPlan


def plan_dispatch_reference(
    expert_ids: Int[Tensor, "T K"],
    num_experts: int,
    *,
    kept: Bool[Tensor, "T K"] | Bool[Tensor, "T 1"] | None = None,
    capacity: int | Int[Tensor, ""] | None = None,
    gates: Float[Tensor, "T K"] | None = None,
    drop_policy: str = "position",
    in_range: bool = False,
) -> DispatchPlan:
    """Sorts slots by expert, stably; :func:`moekit_kernels.plan.plan_dispatch` documents the arguments.

    ``in_range`` promises that all ids are in range, which saves to leave others out.
    """
    num_tokens, top_k = expert_ids.shape
    if expert_ids.dtype not in (torch.int32, torch.int64):  # others cannot hold every number of experts, nor index
        expert_ids = expert_ids.long()
    if not in_range:
        known = (expert_ids >= 0) & (expert_ids < num_experts)
        kept = known if kept is None else known & kept
    key = expert_ids if kept is None else torch.where(kept, expert_ids, num_experts)
    bounds = torch.arange(num_experts + 1, device=key.device)
    dropped = torch.zeros(num_experts, dtype=torch.int64, device=key.device)
    if capacity is None:
        tokens_per_expert = None
    else:
        over = _over_capacity(key, bounds, capacity, gates, drop_policy)
        tokens_per_expert = torch.searchsorted(key.flatten().sort().values, bounds).diff()
        key = torch.where(over, num_experts, key)
    sorted_key, slot_of_row = key.flatten().sort(stable=True)
    offsets = torch.searchsorted(sorted_key, bounds)
    if tokens_per_expert is None:
        tokens_per_expert = offsets.diff()
    else:
        dropped = tokens_per_expert - offsets.diff()
    rows = torch.arange(slot_of_row.shape[0], device=slot_of_row.device)
    return DispatchPlan(
        token_of_row=slot_of_row if top_k == 1 else slot_of_row // top_k,
        slot_of_row=slot_of_row,
        offsets=offsets,
        row_of_slot=torch.empty_like(slot_of_row).scatter_(0, slot_of_row, rows).view(num_tokens, top_k),
        tokens_per_expert=tokens_per_expert,
        dropped_per_expert=dropped,
        num_tokens=num_tokens,
    )


def _over_capacity(
    key: Tensor, bounds: Tensor, capacity: int | Tensor, gates: Tensor | None, drop_policy: str
) -> Tensor:
    """``(T, K)``, True for slots whose place in the queue of their expert is ``capacity`` or later."""
    num_tokens, top_k = key.shape
    if drop_policy == "position":
        queue = torch.arange(key.numel(), device=key.device).view(num_tokens, top_k).T.flatten()
    elif gates is None:
        raise ValueError('drop_policy="gate" needs the gates, got gates=None.')
    else:
        queue = gates.detach().nan_to_num().flatten().sort(descending=True, stable=True).indices
    sorted_key, order = key.flatten()[queue].sort(stable=True)
    starts = torch.searchsorted(sorted_key, bounds)
    place = torch.arange(key.numel(), device=key.device) - starts[sorted_key]
    over = (place >= capacity) & (sorted_key < bounds.shape[0] - 1)
    return torch.empty_like(over).scatter_(0, queue[order], over).view(num_tokens, top_k)
