"""The plan of an expert-choice routing, in which experts choose tokens."""

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
    bounds = torch.arange(num_experts + 1, device=token_ids.device)
    if kept is None:
        slot_of_row = torch.arange(num_experts * capacity, device=token_ids.device)
        offsets = bounds * capacity
    else:
        key = torch.where(kept, bounds[:-1, None], num_experts)
        sorted_key, slot_of_row = key.flatten().sort(stable=True)
        offsets = torch.searchsorted(sorted_key, bounds)
    return DispatchPlan(
        token_of_row=token_ids.flatten()[slot_of_row],
        slot_of_row=slot_of_row,
        offsets=offsets,
        row_of_slot=None,
        tokens_per_expert=offsets.diff(),
        dropped_per_expert=torch.zeros_like(bounds[:-1]),
        num_tokens=num_tokens,
        impl=impl,
    )
