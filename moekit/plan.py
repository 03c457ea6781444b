"""The order in which routed slots meet their experts: plan, dispatch, combine.

A *slot* is one (token, expert) pair of a routing; its index is its place in the flattened gates. A *row*
is a slot's place after sorting by expert. All three functions are shape-static and read nothing on the
host. Letters: T tokens, D width, E experts, K experts per token, N slots and rows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_integer, check_rank
from moekit_kernels.combine import combine as combine_slots
from moekit_kernels.combine import combine_by_token
from moekit_kernels.plan import plan_slots
from moekit_kernels.plan.checks import DROP_POLICIES
from moekit_kernels.plan.checks import Impl as PlanImpl

__all__ = [
    "DROP_POLICIES",
    "DispatchPlan",
    "PlanImpl",
    "check_gates",
    "check_tokens",
    "combine",
    "dispatch",
    "plan_dispatch",
    "plan_expert_choice",
]


class DispatchPlan(NamedTuple):
    """Slots in the order of their experts.

    Attributes:
        token: ``(N,)``, the token of each row.
        slot: ``(N,)``, the slot of each row: its flat index into the gates.
        offsets: ``(E + 1,)``: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``. Rows from
            ``offsets[E]`` on belong to no expert (padding, dropped, non-finite).
        row: ``(T, K)``, the row of each slot: the inverse of ``slot``. ``None`` for expert choice, where
            a token has no fixed number of slots.
        tokens_per_expert: ``(E,)``, slots routed to each expert before any was dropped.
        dropped_per_expert: ``(E,)``, those of them that were over capacity.
        num_tokens: ``T``.
    """

    token: Int[Tensor, "N"]
    slot: Int[Tensor, "N"]
    offsets: Int[Tensor, "E+1"]
    row: Int[Tensor, "T K"] | None
    tokens_per_expert: Int[Tensor, "E"]
    dropped_per_expert: Int[Tensor, "E"]
    num_tokens: int


def plan_dispatch(
    expert_ids: Int[Tensor, "T K"],
    num_experts: int,
    *,
    kept: Bool[Tensor, "T K"] | Bool[Tensor, "T 1"] | None = None,
    capacity: int | Int[Tensor, ""] | None = None,
    gates: Float[Tensor, "T K"] | None = None,
    drop_policy: str = "position",
    impl: PlanImpl = "auto",
) -> DispatchPlan:
    """Sorts the slots of a token-choice routing by expert, stably.

    Args:
        expert_ids: Chosen experts, each in ``[0, num_experts)``.
        num_experts: ``E``.
        kept: False for slots that go nowhere (padding). All are kept by default.
        capacity: Most rows of one expert; the rest is dropped. No limit by default (dropless).
        gates: Needed by ``drop_policy="gate"`` only.
        drop_policy: Who keeps a place in a full expert. ``"position"``: all first choices before all
            second choices, earlier tokens first (GShard, https://arxiv.org/abs/2006.16668).
            ``"gate"``: the larger gate, then the earlier slot (batch prioritised routing of V-MoE,
            https://arxiv.org/abs/2106.05974, by slot).
        impl: ``"torch"`` sorts; ``"triton"`` counts, in one launch for few slots and four for many, without
            dropping. ``"auto"`` takes ``"triton"`` for ids on a GPU where Triton is installed, else ``"torch"``.

    Returns:
        The plan; the same input gives the same plan on every device and by every ``impl``.

    Raises:
        ValueError: If ``expert_ids`` is not an integer ``(T, K)``, ``kept`` or ``gates`` has another shape, a
            number is out of range, ``drop_policy`` is unknown or lacks its gates, or ``impl`` is unknown or cannot
            run here.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[2], [0], [2]]), num_experts=3)
        >>> plan.token.tolist(), plan.offsets.tolist()
        ([1, 0, 2], [0, 1, 1, 3])
    """
    found = plan_slots(
        expert_ids, num_experts, kept=kept, capacity=capacity, gates=gates, drop_policy=drop_policy, impl=impl
    )
    return DispatchPlan(*found, expert_ids.shape[0])


def plan_expert_choice(
    token_ids: Int[Tensor, "E C"], num_tokens: int, *, kept: Bool[Tensor, "E C"] | None = None
) -> DispatchPlan:
    """The plan of an expert-choice routing, in which expert ``e`` takes the tokens ``token_ids[e]``.

    Args:
        token_ids: Chosen tokens, each in ``[0, num_tokens)``.
        num_tokens: ``T``.
        kept: False for places that an expert could not fill. All are filled by default.

    Returns:
        The plan, with ``row`` None.

    Raises:
        ValueError: If ``token_ids`` is not an integer ``(E, C)``, or ``kept`` has another shape.
    """
    check_rank("token_ids", token_ids, 2, "E, C")
    check_integer("token_ids", token_ids)
    if kept is not None and kept.shape != token_ids.shape:
        raise ValueError(f"kept must have the shape of token_ids, {tuple(token_ids.shape)}, got {tuple(kept.shape)}.")
    num_experts, capacity = token_ids.shape
    bounds = torch.arange(num_experts + 1, device=token_ids.device)
    if kept is None:
        slot = torch.arange(num_experts * capacity, device=token_ids.device)
        offsets = bounds * capacity
    else:
        key = torch.where(kept, bounds[:-1, None], num_experts)
        sorted_key, slot = key.flatten().sort(stable=True)
        offsets = torch.searchsorted(sorted_key, bounds)
    nothing_dropped = torch.zeros_like(bounds[:-1])
    return DispatchPlan(token_ids.flatten()[slot], slot, offsets, None, offsets.diff(), nothing_dropped, num_tokens)


def dispatch(x: Float[Tensor, "T *D"], plan: DispatchPlan) -> Float[Tensor, "N *D"]:
    """Copies tokens into rows: ``rows[r] = x[plan.token[r]]``.

    Args:
        x: Tokens, of any trailing shape.
        plan: The plan.

    Returns:
        One row per slot, in the order of the experts.

    Raises:
        ValueError: If ``x`` does not have the plan's number of tokens.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[1], [0]]), num_experts=2)
        >>> dispatch(torch.tensor([[10.0], [20.0]]), plan).flatten().tolist()
        [20.0, 10.0]
    """
    check_tokens(x, plan)
    return x.index_select(0, plan.token)


def combine(
    rows: Float[Tensor, "N *D"], plan: DispatchPlan, gates: Float[Tensor, "A B"], *, impl: PlanImpl = "auto"
) -> Float[Tensor, "T *D"]:
    """Brings rows home: ``out[t] = sum over the slots s of t of gates[s] * rows[row of s]``.

    Products and sums are taken in the wider dtype of ``rows`` and ``gates`` (by ``"triton"`` in float32) and
    returned in that of ``rows``. Deterministic: a gather and a sum over ``K``. For expert choice rows are added up
    in their order, on GPUs after a sort by token.

    Args:
        rows: What the experts made of each row; zero where a row belongs to no expert.
        plan: The plan that dispatched.
        gates: Weights, whose flat index is the slot.
        impl: ``"torch"``: any float dtype, gradients of every order. ``"triton"``: one kernel each way, for rows and
            gates of float32, bfloat16 and float16, first-order gradients. ``"auto"`` takes ``"triton"`` where both
            are of these dtypes on a GPU and Triton is installed, else ``"torch"``.

    Returns:
        One output per token; zero for a token without slots.

    Raises:
        ValueError: If ``rows`` or ``gates`` does not fit the plan, or ``impl`` is unknown or cannot run here.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[0, 1]]), num_experts=2)
        >>> combine(torch.tensor([[1.0], [10.0]]), plan, torch.tensor([[0.25, 0.75]])).item()
        7.75
    """
    if rows.shape[0] != plan.slot.shape[0]:
        raise ValueError(f"rows must be the plan's {plan.slot.shape[0]} rows, got shape {tuple(rows.shape)}.")
    check_gates(gates, plan)
    if plan.row is not None:
        return combine_slots(rows, plan.row, gates, impl=impl)
    return combine_by_token(rows, plan.token, plan.slot, gates, plan.num_tokens, impl=impl)


def check_tokens(x: Tensor, plan: DispatchPlan) -> None:
    """Raises ``ValueError`` unless ``x`` has the plan's number of tokens."""
    if x.shape[0] != plan.num_tokens:
        raise ValueError(f"x must have the plan's {plan.num_tokens} tokens, got shape {tuple(x.shape)}.")


def check_gates(gates: Tensor, plan: DispatchPlan) -> None:
    """Raises ``ValueError`` unless ``gates`` has one value per slot, ``(T, K)`` where slots lie so."""
    fits = gates.numel() == plan.slot.shape[0]
    if not fits or (plan.row is not None and gates.shape != plan.row.shape):
        shape = (plan.slot.shape[0],) if plan.row is None else tuple(plan.row.shape)
        raise ValueError(f"gates must have one value per slot, {shape}, got shape {tuple(gates.shape)}.")
