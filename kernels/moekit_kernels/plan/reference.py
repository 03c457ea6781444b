"""The plan by sorting: plain PyTorch, on any device.

Names end with the letters of their layout: T tokens, K experts per token, N = T·K slots and rows, E experts; E1 is
E + 1. Sorted tensors, and those that are named by direction, are ``(N,)``.
"""

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

    ``in_range`` promises that all ids are in range, which saves comparing them.
    """
    num_tokens, top_k = expert_ids.shape
    ids_TK = expert_ids
    if ids_TK.dtype not in (torch.int32, torch.int64):  # others cannot hold every number of experts, nor index
        ids_TK = ids_TK.long()
    if not in_range:
        known_TK = (ids_TK >= 0) & (ids_TK < num_experts)
        kept = known_TK if kept is None else known_TK & kept
    key_TK = ids_TK if kept is None else torch.where(kept, ids_TK, num_experts)
    bounds_E1 = torch.arange(num_experts + 1, device=key_TK.device)
    dropped_E = torch.zeros(num_experts, dtype=torch.int64, device=key_TK.device)
    if capacity is None:
        routed_E = None
    else:
        over_TK = _over_capacity(key_TK, bounds_E1, capacity, gates, drop_policy)
        routed_E = torch.searchsorted(key_TK.flatten().sort().values, bounds_E1).diff()
        key_TK = torch.where(over_TK, num_experts, key_TK)
    sorted_key_N, slot_of_row = key_TK.flatten().sort(stable=True)
    offsets_E1 = torch.searchsorted(sorted_key_N, bounds_E1)
    if routed_E is None:
        routed_E = offsets_E1.diff()
    else:
        dropped_E = routed_E - offsets_E1.diff()
    row_N = torch.arange(slot_of_row.shape[0], device=slot_of_row.device)
    return DispatchPlan(
        token_of_row=slot_of_row if top_k == 1 else slot_of_row // top_k,
        slot_of_row=slot_of_row,
        offsets=offsets_E1,
        row_of_slot=torch.empty_like(slot_of_row).scatter_(0, slot_of_row, row_N).view(num_tokens, top_k),
        tokens_per_expert=routed_E,
        dropped_per_expert=dropped_E,
        num_tokens=num_tokens,
    )


def _over_capacity(
    key_TK: Tensor, bounds_E1: Tensor, capacity: int | Tensor, gates: Tensor | None, drop_policy: str
) -> Tensor:
    """Returns ``(T, K)``, True for slots whose place in the queue of their expert is ``capacity`` or later."""
    num_tokens, top_k = key_TK.shape
    index_N = torch.arange(key_TK.numel(), device=key_TK.device)
    if drop_policy == "position":
        slot_of_place = index_N.view(num_tokens, top_k).T.flatten()
    elif gates is None:
        raise ValueError('drop_policy="gate" needs the gates, got gates=None.')
    else:
        slot_of_place = gates.detach().nan_to_num().flatten().sort(descending=True, stable=True).indices
    sorted_key_N, place_of_row = key_TK.flatten()[slot_of_place].sort(stable=True)
    starts_E1 = torch.searchsorted(sorted_key_N, bounds_E1)
    rank_N = index_N - starts_E1[sorted_key_N]
    over_N = (rank_N >= capacity) & (sorted_key_N < bounds_E1.shape[0] - 1)
    return torch.empty_like(over_N).scatter_(0, slot_of_place[place_of_row], over_N).view(num_tokens, top_k)
