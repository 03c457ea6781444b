"""The plan of an expert-choice routing, in which experts choose tokens.

Names end with the letters of their layout: E experts, C places of each, N = E·C slots and rows; E1 is E + 1.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moekit_kernels.impl import Impl, check_impl
from moekit_kernels.plan.checks import check_expert_choice
from moekit_kernels.plan.dispatch_plan import DispatchPlan


def plan_expert_choice(
    token_ids: Int[Tensor, "E C"],
    num_tokens: int,
    *,
    kept: Bool[Tensor, "E C"] | None = None,
    impl: Impl = "auto",
) -> DispatchPlan:
    """Returns the plan of an expert-choice routing, in which expert ``e`` takes the tokens ``token_ids[e]``.

    Args:
        token_ids: Chosen tokens, each in ``[0, num_tokens)``.
        num_tokens: ``T``.
        kept: False for places that an expert could not fill. All are filled by default.
        impl: Carried by the plan, for :func:`~moekit_kernels.combine.combine` and experts; the plan itself has one
            implementation, in plain PyTorch.

    Returns:
        The plan, with ``row_of_slot`` None.

    Raises:
        ValueError: If ``token_ids`` is not an integer ``(E, C)``, ``kept`` has another shape, an id
            on CPU is out of range, or ``impl`` is unknown.
    """
    check_expert_choice(token_ids, num_tokens, kept)
    check_impl(impl)
    num_experts, capacity = token_ids.shape
    bounds_E1 = torch.arange(num_experts + 1, device=token_ids.device)
    if kept is None:
        slot_of_row = torch.arange(num_experts * capacity, device=token_ids.device)
        offsets_E1 = bounds_E1 * capacity
    else:
        key_EC = torch.where(kept, bounds_E1[:-1, None], num_experts)
        sorted_key_N, slot_of_row = key_EC.flatten().sort(stable=True)
        offsets_E1 = torch.searchsorted(sorted_key_N, bounds_E1)
    return DispatchPlan(
        token_of_row=token_ids.flatten()[slot_of_row],
        slot_of_row=slot_of_row,
        offsets=offsets_E1,
        row_of_slot=None,
        tokens_per_expert=offsets_E1.diff(),
        dropped_per_expert=torch.zeros_like(bounds_E1[:-1]),
        num_tokens=num_tokens,
        impl=impl,
    )
