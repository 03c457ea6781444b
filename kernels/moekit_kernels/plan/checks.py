"""Checks of the arguments of a plan; they read shapes, dtypes and devices, and values only on CPU."""

import torch
from torch import Tensor

from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.transforms import is_traced, is_wrapped

DROP_POLICIES = ("position", "gate")


def check_arguments(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None,
    capacity: int | Tensor | None,
    gates: Tensor | None,
    drop_policy: str,
) -> None:
    """Raises ``ValueError`` unless the arguments of :func:`~moekit_kernels.plan.plan_dispatch` fit each other."""
    _check_ids("expert_ids", expert_ids, "T, K")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}.")
    if drop_policy not in DROP_POLICIES:
        raise ValueError(f"drop_policy must be one of {', '.join(map(repr, DROP_POLICIES))}, got {drop_policy!r}.")
    num_tokens, top_k = expert_ids.shape
    if kept is not None and (kept.ndim != 2 or kept.shape[0] != num_tokens or kept.shape[1] not in (1, top_k)):
        raise ValueError(f"kept must have shape ({num_tokens}, {top_k}) or ({num_tokens}, 1), got {tuple(kept.shape)}.")
    if gates is not None and gates.shape != expert_ids.shape:
        raise ValueError(f"gates must have the shape of expert_ids, {(num_tokens, top_k)}, got {tuple(gates.shape)}.")
    if isinstance(capacity, int) and capacity < 0:
        raise ValueError(f"capacity must not be negative, got {capacity}.")
    if capacity is not None and drop_policy == "gate" and gates is None:
        raise ValueError('drop_policy="gate" needs the gates, got gates=None.')


def check_companions(expert_ids: Tensor, kept: Tensor | None, capacity: int | Tensor | None) -> None:
    """Raises ``ValueError`` where PyTorch would refuse a tensor that a kernel would misread."""
    if kept is not None and (kept.dtype != torch.bool or kept.device != expert_ids.device):
        raise ValueError(
            f"kept must be a bool tensor (False for slots to leave out) on {expert_ids.device}, "
            f"got {kept.dtype} on {kept.device}."
        )
    if isinstance(capacity, Tensor) and (capacity.ndim != 0 or capacity.is_floating_point()):
        raise ValueError(
            f"capacity must be an integer or an integer tensor without dimensions, "
            f"got {capacity.dtype} of shape {tuple(capacity.shape)}."
        )


def check_range(name: str, ids: Tensor, size: int, what: str, kept: Tensor | None) -> bool:
    """Checks the values of ids, where reading them makes no device wait: on CPU, outside traced and transformed code.

    Args:
        name: Of the argument.
        ids: The ids.
        size: Ids must be in ``[0, size)``.
        what: What the ids number, for the message.
        kept: False for ids that may have any value.

    Returns:
        Whether the values were read.

    Raises:
        ValueError: If an id that is kept is out of range.
    """
    if ids.device.type != "cpu" or is_traced() or type(ids) is not Tensor or is_wrapped(ids):
        return False
    if ids.numel() == 0:
        return True
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= size:
        wrong = (ids < 0) | (ids >= size)
        wrong = wrong if kept is None else wrong & kept
        if wrong.any():
            raise ValueError(
                f"{name} must be in [0, {size}), the {what}, got {int(ids[wrong][0])}: leave slots out by kept."
            )
        return False
    return True


def check_expert_choice(token_ids: Tensor, num_tokens: int, kept: Tensor | None) -> None:
    """Raises ``ValueError`` unless the arguments of :func:`~moekit_kernels.plan.plan_expert_choice` fit each other."""
    _check_ids("token_ids", token_ids, "E, C")
    if kept is not None and kept.shape != token_ids.shape:
        raise ValueError(f"kept must have the shape of token_ids, {tuple(token_ids.shape)}, got {tuple(kept.shape)}.")
    check_range("token_ids", token_ids, num_tokens, "tokens", None)


def check_tokens(x: Tensor, plan: DispatchPlan) -> None:
    """Raises ``ValueError`` unless ``x`` has the plan's number of tokens."""
    if x.shape[0] != plan.num_tokens:
        raise ValueError(f"x must have the plan's {plan.num_tokens} tokens, got shape {tuple(x.shape)}.")


def check_gates(gates: Tensor, plan: DispatchPlan) -> None:
    """Raises ``ValueError`` unless ``gates`` has one value per slot, ``(T, K)`` where tokens have ``K`` slots each."""
    row_of_slot, num_rows = plan.row_of_slot, plan.slot_of_row.shape[0]
    fits = gates.numel() == num_rows if row_of_slot is None else gates.shape == row_of_slot.shape
    if not fits:
        shape = (num_rows,) if row_of_slot is None else tuple(row_of_slot.shape)
        raise ValueError(f"gates must have one value per slot, {shape}, got shape {tuple(gates.shape)}.")


def _check_ids(name: str, ids: Tensor, letters: str) -> None:
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape ({letters}), got shape {tuple(ids.shape)}.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be of an integer dtype, got {ids.dtype}.")
