"""Steps of a sparse layer as functions: masking, repeating decisions, planning a routing."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from moekit.capacity import Capacity
from moekit.checks import check_mask, check_same_device
from moekit.observers import RoutingEvent, notify
from moekit.plan import DispatchPlan, plan_dispatch, plan_expert_choice
from moekit.routing import CountedTokens, Routing
from moekit_kernels.impl import Impl

GatesOn = Literal["outputs", "inputs"]
GATES_ON: tuple[GatesOn, ...] = ("outputs", "inputs")

EXPERT_CHOICE_CAPACITY = "capacity_factor of an expert-choice layer belongs to its router: set it there."


def check_routing(routing: Routing, router_input: Tensor | None, lead: torch.Size) -> None:
    """Raises ``ValueError`` unless ``routing`` is a routing of ``lead`` tokens, and comes without a router input."""
    if not isinstance(routing, Routing):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"routing must be a Routing, as route() returns, got a {type(routing).__name__}.")
    if router_input is not None:
        raise ValueError("router_input and routing exclude each other; give one of them.")
    if routing.valid.shape[0] != math.prod(lead):
        raise ValueError(f"routing must be for the {lead.numel()} tokens of x, got {routing.valid.shape[0]} rows.")


def flat_mask(mask: Tensor | None, x: Tensor, lead: torch.Size) -> Tensor | None:
    """Returns a mask of shape ``lead`` as ``(T,)``.

    Raises:
        ValueError: If ``mask`` is not boolean, of another shape, or not on the device of ``x``.
    """
    if mask is None:
        return None
    check_mask("mask", mask, lead)
    check_same_device("mask", mask, "x", x)
    return mask.reshape(-1)


def flat_router_input(
    router_input: Tensor, x: Tensor, lead: torch.Size, num_features: int
) -> tuple[Tensor, torch.Size]:
    """Splits the router's own input into one row per decision.

    Args:
        router_input: Its leading dimensions are ``lead`` or the first of them.
        x: The layer's input, for its device.
        lead: Leading dimensions of the tokens.
        num_features: Trailing dimensions of ``router_input`` that make one row.

    Returns:
        Rows, and the dimensions of tokens that share a decision: none where each token has its own.

    Raises:
        ValueError: If ``router_input`` has other leading dimensions, or is not on the device of ``x``.
    """
    own_lead = router_input.shape[: router_input.ndim - num_features]
    if router_input.ndim < num_features or own_lead != lead[: len(own_lead)]:
        raise ValueError(
            f"router_input must have the leading dimensions of x, {tuple(lead)}, or the first of them"
            f"{' before its features' if num_features else ''}, got shape {tuple(router_input.shape)}."
        )
    check_same_device("router_input", router_input, "x", x)
    return router_input.reshape(-1, *router_input.shape[len(own_lead) :]), lead[len(own_lead) :]


def rows_and_tokens(rows: Tensor, shared_by: torch.Size, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a router input with one row for each token, and the tokens ``(T, D)``.

    Args:
        rows: As :func:`flat_router_input` returns them.
        shared_by: Dimensions of the tokens that share a row.
        x: The layer's input ``(..., D)``.
    """
    if shared_by:
        rows = rows.repeat_interleave(math.prod(shared_by), dim=0)  # .numel() would fix the number in torch.export
    return rows, x.reshape(-1, x.shape[-1])


def hide_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Replaces what padding holds by zeros: NaN included, it would reach gradients as ``0 * NaN``.

    Args:
        x: Of the shape of ``mask`` and further dimensions. Returned as it is if not floating.
        mask: True for real tokens; all by default.
    """
    if mask is None or not x.is_floating_point():
        return x
    return torch.where(mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, 0)


def shared_output(shared: nn.Module, x: Tensor | Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """Computes the shared module without the masked tokens; zero for these."""
    if mask is None:
        return shared(x)
    hidden = hide_masked(x, mask) if isinstance(x, Tensor) else [hide_masked(each, mask) for each in x]
    return hide_masked(shared(hidden), mask)


class Deferred:
    """Something that is computed when it is first called for, and no second time.

    Args:
        compute: Computes it.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute, self._result = compute, None

    def __call__(self) -> Tensor:
        """Returns it."""
        if self._result is None:
            self._result = self._compute()
        return self._result


def waits_for_others(experts: nn.Module) -> bool:
    """Returns whether a bank waits for other ranks, and takes what to compute ``meanwhile``.

    A wrapper around it does not say so: checkpointing of the bank alone would compute it twice. In compiled code what
    is computed meanwhile would not be compiled.
    """
    return getattr(type(experts), "is_divided", False) and not torch.compiler.is_dynamo_compiling()


def masked_gates(routing: Routing, mask: Tensor | None) -> Tensor:
    """Returns the gates of a routing, zero for masked tokens."""
    if mask is None:
        return routing.gates
    real = mask.unsqueeze(-1) if routing.token_ids is None else mask[routing.token_ids]
    return torch.where(real, routing.gates, 0)


def experts_on_gated_inputs(
    experts: Callable[..., Tensor], x: Tensor | Sequence[Tensor], plan: DispatchPlan, gates: Tensor
) -> Tensor:
    """Computes ``sum_k expert_k(gate_k * x)``: every slot is a token of its own, with a gate of 1.

    Args:
        experts: As :class:`~moekit.experts.base.Experts` are called.
        x: Tokens ``(T, ...)``, or maps of pyramids.
        plan: Of token choice.
        gates: ``(T, K)``.

    Returns:
        One output per token; zero for one without an expert, NaN where a gate is NaN.
    """
    num_tokens, top_k = gates.shape
    slots = plan._replace(
        token_of_row=plan.slot_of_row,
        row_of_slot=None if plan.row_of_slot is None else plan.row_of_slot.view(-1, 1),
        num_tokens=num_tokens * top_k,
    )

    factors = torch.where(gates.isnan(), 0, gates)  # whose slots are in no expert's rows; NaN would reach gradients

    def gated(each: Tensor) -> Tensor:
        copies = each.unsqueeze(1) * factors.view(num_tokens, top_k, *(1,) * (each.ndim - 1))
        return copies.to(each.dtype).flatten(0, 1)

    inputs = gated(x) if isinstance(x, Tensor) else [gated(each) for each in x]
    y = experts(inputs, slots, gates.new_ones(num_tokens * top_k, 1))
    y = y.view(num_tokens, top_k, *y.shape[1:]).sum(1)
    # A token with a NaN gate is in no expert's rows; it must not look like one without an expert.
    nothing = (gates.detach() * 0).sum(1).to(y.dtype)
    return y + nothing.view(num_tokens, *(1,) * (y.ndim - 1))


def repeat_decisions(routing: Routing, shared_by: torch.Size) -> Routing:
    """Repeats each decision for the tokens that share it, whose dimensions are ``shared_by``.

    Raises:
        ValueError: If the routing has no probabilities: the router's sums are not those of the tokens.
    """
    if routing.probs is None:
        raise ValueError(
            "router must return probabilities where tokens share a decision, got a routing without: "
            "use TopKRouter(..., return_logits=True)."
        )
    times = math.prod(shared_by)  # .numel() would fix the number in torch.export

    def repeated(field: Tensor) -> Tensor:
        return field.repeat_interleave(times, dim=0)

    return routing._replace(
        gates=repeated(routing.gates),
        expert_ids=repeated(routing.expert_ids),
        logits=None if routing.logits is None else repeated(routing.logits),
        probs=repeated(routing.probs),
        valid=repeated(routing.valid),
        load_probs=None if routing.load_probs is None else repeated(routing.load_probs),
        kept=None if routing.kept is None else repeated(routing.kept),
        sums=None,
    )


def plan_routing(
    routing: Routing,
    mask: Tensor | None,
    counted: CountedTokens,
    *,
    num_experts: int,
    capacity: Capacity | None,
    drop_policy: str,
    impl: Impl,
) -> DispatchPlan:
    """Orders the slots of a routing by expert.

    Args:
        routing: One row per token.
        mask: ``(T,)``, True for real tokens; only these take capacity.
        counted: The tokens of the routing that count under the mask.
        num_experts: ``E`` of the experts that will compute.
        capacity: Limit of an expert; none for expert choice, whose router limits.
        drop_policy: See :func:`~moekit.plan.plan_dispatch`.
        impl: Implementation of the plan.

    Raises:
        ValueError: If ``routing`` is for another number of experts, or is expert choice and there is a capacity.
    """
    if routing.num_experts != num_experts:
        raise ValueError(
            f"routing must be for the {num_experts} experts of this layer, got one for "
            f"{routing.num_experts}: make it with this layer's route()."
        )
    num_tokens = routing.valid.shape[0]
    if routing.token_ids is not None:
        if capacity is not None:
            raise ValueError(EXPERT_CHOICE_CAPACITY)
        kept = routing.kept
        if mask is not None:
            kept = mask[routing.token_ids] if kept is None else kept & mask[routing.token_ids]
        return plan_expert_choice(routing.token_ids, num_tokens, kept=kept, impl=impl)
    limit = None
    if capacity is not None:
        top_k = routing.expert_ids.shape[1]
        limit = capacity(num_tokens, num_experts, top_k) if mask is None else capacity(mask.sum(), num_experts, top_k)
    kept = None if counted.are_all else counted.tokens.unsqueeze(-1)
    if routing.kept is not None:
        kept = routing.kept if kept is None else routing.kept & kept
    return plan_dispatch(
        routing.expert_ids,
        num_experts,
        kept=kept,
        capacity=limit,
        gates=routing.gates,
        drop_policy=drop_policy,
        impl=impl,
    )


def notify_observers(layer: nn.Module, routing: Routing, plan: DispatchPlan, mask: Tensor | None) -> None:
    """Reports the routing of a call to the observers; see :mod:`moekit.observers`."""
    sums = routing.sums if routing.sums is not None and routing.sums.of(routing, mask) else None
    expert_ids, num_experts = routing.expert_ids, plan.tokens_per_expert.shape[0]
    if routing.kept is not None:
        expert_ids = torch.where(routing.kept, expert_ids, num_experts)
    notify(
        RoutingEvent(
            layer,
            num_experts,
            expert_ids=expert_ids if routing.token_ids is None else None,
            token_ids=routing.token_ids,
            kept=None if routing.token_ids is None else routing.kept,
            probs=routing.probs,
            valid=routing.valid,
            mask=mask,
            tokens_per_expert=plan.tokens_per_expert,
            dropped_per_expert=plan.dropped_per_expert,
            prob_sum=None if sums is None else sums.sums.prob_sum,
            entropy_sum=None if sums is None else sums.sums.entropy_sum,
        )
    )
