"""``moekit::plan_dispatch``: schema, fake, choice of implementation. A plan has no gradient."""

from typing import cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit_kernels.configs import tile_heights
from moekit_kernels.eager import operation
from moekit_kernels.impl import Impl, Limits, resolve_impl
from moekit_kernels.plan import launches
from moekit_kernels.plan.checks import check_arguments, check_companions, check_range
from moekit_kernels.plan.dispatch_plan import DispatchPlan
from moekit_kernels.plan.few_slots import few_slots, plan_few_slots
from moekit_kernels.plan.reference import plan_dispatch_reference
from moekit_kernels.runtime import current_target

LIMITS = Limits()

_Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@operation("moekit::plan_dispatch")
def _plan_dispatch(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None,
    limit: int | None,
    limit_at: Tensor | None,
    gates: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = launches.plan_slots(expert_ids, num_experts, kept, launches.Limit(limit, limit_at, gates))
    return cast(_Tensors, (*plan[:6], plan.tiles))


@_plan_dispatch.register_fake
def _(
    expert_ids: Tensor,
    num_experts: int,
    kept: Tensor | None,
    limit: int | None,
    limit_at: Tensor | None,
    gates: Tensor | None,
) -> _Tensors:
    try:
        heights = tile_heights(current_target(expert_ids.device))
    except (ValueError, RuntimeError, AssertionError):
        heights = ()  # no kernel runs here, as on meta tensors: the plan that one will make elsewhere has schedules
    plan = launches.outputs(expert_ids, num_experts, heights)
    return cast(_Tensors, (*plan[:6], plan.tiles))


def plan_dispatch(
    expert_ids: Int[Tensor, "T K"],
    num_experts: int,
    *,
    kept: Bool[Tensor, "T K"] | Bool[Tensor, "T 1"] | None = None,
    capacity: int | Int[Tensor, ""] | None = None,
    gates: Float[Tensor, "T K"] | None = None,
    drop_policy: str = "position",
    impl: Impl = "auto",
) -> DispatchPlan:
    """Sorts the slots of a token-choice routing by expert, stably.

    Args:
        expert_ids: Chosen experts, each in ``[0, num_experts)``. On CPU others are an error. On GPUs, where reading
            them would make the device wait, and in compiled or traced code, a slot with another id is left out, as by
            ``kept``.
        num_experts: ``E``.
        kept: False for slots to leave out (padding). All are kept by default.
        capacity: Most rows of one expert; the rest is dropped. No limit by default (dropless).
        gates: Needed by ``drop_policy="gate"`` only; NaN counts as 0.
        drop_policy: Which slots keep their place in a full expert. ``"position"``: all first choices before all
            second choices, earlier tokens first (GShard, https://arxiv.org/abs/2006.16668). ``"gate"``: the larger
            gate, then the earlier slot (batch prioritised routing of V-MoE, https://arxiv.org/abs/2106.05974, by slot).
        impl: ``"reference"`` and ``"torch"`` sort; ``"triton"`` counts. Same bits either way; see
            :mod:`moekit_kernels.impl`. The plan carries it, for :func:`~moekit_kernels.combine.combine` and experts.

    Returns:
        The plan; the same input gives the same plan on every device and by every ``impl``.

    Raises:
        ValueError: If ``expert_ids`` is not an integer ``(T, K)``, ``kept`` or ``gates`` has another shape, a number
            is out of range, ``drop_policy`` is unknown or lacks its gates, or ``impl`` is unknown or cannot run here.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[2], [0], [2]]), num_experts=3)
        >>> plan.token_of_row.tolist(), plan.offsets.tolist()
        ([1, 0, 2], [0, 1, 1, 3])
    """
    check_arguments(expert_ids, num_experts, kept, capacity, gates, drop_policy)
    resolved = resolve_impl(impl, LIMITS, expert_ids.device)
    if resolved == "reference" and kept is None and capacity is None and few_slots(expert_ids, num_experts):
        plan = plan_few_slots(expert_ids, num_experts)
        if plan is not None:
            return plan if impl == "auto" else plan._replace(impl=impl)
    in_range = check_range("expert_ids", expert_ids, num_experts, "experts", kept)
    if resolved == "reference":
        plan = plan_dispatch_reference(
            expert_ids,
            num_experts,
            kept=kept,
            capacity=capacity,
            gates=gates,
            drop_policy=drop_policy,
            in_range=in_range,
        )
        return plan if impl == "auto" else plan._replace(impl=impl)
    check_companions(expert_ids, kept, capacity)
    limit, limit_at = (None, capacity) if isinstance(capacity, Tensor) else (capacity, None)
    by_gate = None if gates is None or capacity is None or drop_policy == "position" else gates.detach()
    tensors = cast(_Tensors, _plan_dispatch(expert_ids, num_experts, kept, limit, limit_at, by_gate))
    return DispatchPlan(*tensors[:6], expert_ids.shape[0], impl, tensors[6])
