"""``moekit::plan_slots``: schema, fake, and which way is taken. A plan has no gradient."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.availability import triton_is_installed
from moekit_kernels.plan import launches
from moekit_kernels.plan.checks import IMPLS, Impl, check_arguments, check_companions
from moekit_kernels.plan.reference import plan_slots_reference
from moekit_kernels.plan.slot_plan import SlotPlan


@torch.library.custom_op("moekit::plan_slots", mutates_args=())
def _plan_slots(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None,
    limit: int | None,
    limit_at: Tensor | None,
    gates: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return launches.plan(expert_ids, num_experts, kept, limit, limit_at, gates)


@_plan_slots.register_fake
def _(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None,
    limit: int | None,
    limit_at: Tensor | None,
    gates: Tensor | None,
) -> tuple[Tensor, ...]:
    return launches.outputs(expert_ids, num_experts)


def resolve_impl(impl: str, expert_ids: Tensor) -> Literal["torch", "triton"]:
    """What ``impl`` means for these ids.

    ``"auto"`` is ``"triton"`` for ids on a GPU (CUDA or HIP) if Triton is installed, else ``"torch"``. An explicit
    choice is never changed.

    Raises:
        ValueError: If ``impl`` is unknown, or ``"triton"`` was asked for and is not installed.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}.")
    if impl == "triton" and not triton_is_installed():
        raise ValueError('impl="triton" needs the package triton, which is not installed: use impl="auto".')
    if impl == "auto":
        return "triton" if expert_ids.device.type == "cuda" and triton_is_installed() else "torch"
    return "triton" if impl == "triton" else "torch"


def plan_slots(
    expert_ids: Int[Tensor, "T K"],
    num_experts: int,
    *,
    kept: Bool[Tensor, "T K"] | Bool[Tensor, "T 1"] | None = None,
    capacity: int | Int[Tensor, ""] | None = None,
    gates: Float[Tensor, "T K"] | None = None,
    drop_policy: str = "position",
    impl: Impl = "auto",
) -> SlotPlan:
    """Sorts the slots of a token-choice routing by expert, stably.

    Args:
        expert_ids: Chosen experts, each in ``[0, num_experts)``; what others do is undefined.
        num_experts: ``E``.
        kept: False for slots that go nowhere. All are kept by default.
        capacity: Most rows of one expert; the rest is dropped. No limit by default.
        gates: Needed by ``drop_policy="gate"`` only; NaN counts as 0.
        drop_policy: Who keeps a place in a full expert: ``"position"``, all first choices before all second
            choices, earlier tokens first; or ``"gate"``, the larger gate, then the earlier slot.
        impl: ``"torch"`` sorts; ``"triton"`` counts; ``"auto"`` picks by :func:`resolve_impl`. Same bits either way.

    Returns:
        The plan.

    Raises:
        ValueError: If the arguments do not fit each other, or ``impl`` is unknown or cannot run.

    Example:
        >>> plan = plan_slots(torch.tensor([[2], [0], [2]]), 3)
        >>> plan.token.tolist(), plan.offsets.tolist()
        ([1, 0, 2], [0, 1, 1, 3])
    """
    check_arguments(expert_ids, num_experts, kept, capacity, gates, drop_policy)
    if resolve_impl(impl, expert_ids) == "torch":
        return plan_slots_reference(
            expert_ids, num_experts, kept=kept, capacity=capacity, gates=gates, drop_policy=drop_policy
        )
    check_companions(expert_ids, kept, capacity)
    limit, limit_at = (None, capacity) if isinstance(capacity, Tensor) else (capacity, None)
    by_gate = None if gates is None or capacity is None or drop_policy == "position" else gates.detach()
    return SlotPlan(*_plan_slots(expert_ids, num_experts, kept, limit, limit_at, by_gate))
