"""The sparse layer: router, plan, experts and combine, composed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from moekit.capacity import Capacity
from moekit.checks import check_choice
from moekit.compiled_layer import compiled_call
from moekit.deferred_stats import stats_of_call
from moekit.experts.activation import ActivationLike
from moekit.experts.base import Experts, input_tensors
from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts
from moekit.layer_parts import (
    EXPERT_CHOICE_CAPACITY,
    GATES_ON,
    Deferred,
    GatesOn,
    check_routing,
    experts_on_gated_inputs,
    flat_mask,
    flat_router_input,
    hide_masked,
    masked_gates,
    notify_observers,
    plan_routing,
    repeat_decisions,
    rows_and_tokens,
    shared_output,
    waits_for_others,
)
from moekit.observers import observed
from moekit.parts import ExpertsPart, RouterPart, check_module, check_part_impl, experts_part, router_part
from moekit.plan import DROP_POLICIES, DispatchPlan
from moekit.routers.base import Router
from moekit.routers.top_k import TopKRouter
from moekit.routing import CountedTokens, RouterStats, Routing, counted_tokens, make_stats
from moekit.settings import SettingsModule
from moekit_kernels.impl import Impl, check_impl
from moekit_kernels.moe_ffn import Recompute


class MoEOutput(NamedTuple):
    """Output of a layer.

    Attributes:
        output: Of the shape of the input (its last dimension may differ with the experts' ``out_dim``); for a
            pyramid one map.
        stats: Counts and sums for losses and logs; ``None`` of a call with ``stats=False``.
    """

    output: Float[Tensor, "... D"]
    stats: RouterStats | None


class SparseMoE(SettingsModule):
    """A sparsely activated Mixture-of-Experts layer: ``y = sum_k gate_k * expert_k(x) + shared(x)``.

    With ``gates_on="inputs"``, as in Llama 4: ``y = sum_k expert_k(gate_k * x) + shared(x)``.

    Four parts, each replaceable alone: a router chooses experts for each token, a plan orders the chosen slots by
    expert, experts compute, combine adds each token's results. Nothing is written in ``forward``; counts are returned.

    Whatever stands in ``router``, ``experts`` and ``shared`` is called, so a wrapper (LoRA, activation checkpointing,
    FSDP, a compiled module) may replace each. The attributes that the layer needs are read when a part is assigned.

    Args:
        router: Chooses experts for each token.
        experts: Compute.
        shared: A module that every token passes, added to the routed output.
        capacity_factor: Drops what an expert gets beyond ``ceil(capacity_factor * T * K / E)`` slots, where
            ``T`` counts the unmasked tokens; a dropped slot contributes nothing. Dropless by default. May be set later.
        drop_policy: Which slots keep their place; see :func:`~moekit.plan.plan_dispatch`. May be set later.
        gates_on: What gates multiply: ``"outputs"`` of the experts, or their ``"inputs"``, which then are one copy of
            the token for each slot. The latter needs a router that chooses experts for tokens. May be set later.
        impl: Implementation of plan and combine, and of experts whose own is ``"auto"``; see
            :mod:`moekit_kernels.impl`. The router has its own. An explicit choice of a part must be the same.

    Raises:
        ValueError: If router and experts disagree on ``E``, a part is not what its place needs, or an option is out of
            range.

    Example:
        >>> moe = SparseMoE(TopKRouter(64, num_experts=8, top_k=2), FFNExperts(64, 128, 8))
        >>> output, stats = moe(torch.randn(2, 10, 64))
        >>> output.shape, stats.tokens_per_expert.sum().item()
        (torch.Size([2, 10, 64]), 40)
    """

    _checked_settings = frozenset({"capacity_factor", "drop_policy", "gates_on", "impl"})
    _router_part: RouterPart
    _experts_part: ExpertsPart

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        shared: nn.Module | None = None,
        capacity_factor: float | None = None,
        drop_policy: str = "position",
        gates_on: GatesOn = "outputs",
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        check_impl(impl)
        self.impl: Impl = impl
        self.router = router
        self.experts = experts
        self.shared = shared
        self.capacity_factor = capacity_factor
        self.drop_policy = drop_policy
        self.gates_on: GatesOn = gates_on
        if self._router_part.num_experts != self._experts_part.num_experts:
            raise ValueError(
                f"router and experts must agree on the number of experts, got {self._router_part.num_experts} "
                f"and {self._experts_part.num_experts}."
            )
        self._check_settings()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; of a part, reads what the layer needs to know."""
        if name in ("router", "experts"):
            check_part_impl(name, value, self.impl)
        if name == "router":
            known = self.__dict__.get("_router_part")
            self._router_part = router_part(value, self._modules.get(name), known)
        elif name == "experts":
            known = self.__dict__.get("_experts_part")
            self._experts_part = experts_part(value, self._modules.get(name), known)
        elif name == "shared" and value is not None:
            check_module(name, value)
        super().__setattr__(name, value)

    @classmethod
    def ffn(
        cls,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        activation: ActivationLike = "swiglu",
        bias: bool = False,
        shared_hidden_dim: int | None = None,
        capacity_factor: float | None = None,
        impl: Impl = "auto",
        recompute: Recompute = "activation",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "SparseMoE":
        """Builds the common layer: softmax top-k routing to feed-forward experts.

        For any other router, expert or option, build the parts and pass them to the class.

        Args:
            dim: Width of the tokens, ``D``.
            hidden_dim: Hidden width of each expert, ``F``.
            num_experts: ``E``.
            top_k: ``K``.
            activation: See :class:`~moekit.experts.ffn.FFNExperts`.
            bias: Whether the experts have biases.
            shared_hidden_dim: Hidden width of a shared expert; none by default.
            capacity_factor: See the class.
            impl: Of router, plan, experts and combine; ``"reference"`` and ``"torch"`` start no Triton kernel. See
                :mod:`moekit_kernels.impl`.
            recompute: See :class:`~moekit.experts.ffn.FFNExperts`.
            device: Device of the parameters.
            dtype: Dtype of the parameters.

        Raises:
            ValueError: If an argument is out of range.

        Example:
            >>> SparseMoE.ffn(64, 128, num_experts=8, top_k=2)(torch.randn(4, 64)).output.shape
            torch.Size([4, 64])
        """
        router = TopKRouter(dim, num_experts, top_k, impl=impl, device=device, dtype=dtype)
        experts = FFNExperts(
            dim,
            hidden_dim,
            num_experts,
            activation=activation,
            bias=bias,
            impl=impl,
            recompute=recompute,
            device=device,
            dtype=dtype,
        )
        shared = None
        if shared_hidden_dim is not None:
            shared = FFN(dim, shared_hidden_dim, activation=activation, bias=bias, device=device, dtype=dtype)
        return cls(router, experts, shared=shared, capacity_factor=capacity_factor, impl=impl)

    def forward(
        self,
        x: Float[Tensor, "... D"] | Sequence[Float[Tensor, "..."]],
        *,
        router_input: Shaped[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        routing: Routing | None = None,
        plan: DispatchPlan | None = None,
        stats: bool = True,
    ) -> MoEOutput:
        """Routes, computes and combines.

        Args:
            x: Tokens ``(..., D)``; with experts over samples ``(..., *token)`` of their ``token_ndim``. With experts
                over pyramids a sequence of maps ``(..., C, H, W)`` that share their leading dimensions.
            router_input: Input of the router instead of ``x``. Its leading dimensions are those of ``x``
                (one decision per token) or the first few of them (one decision for all tokens below: a
                context ``(B, Dc)`` routes each sample of ``x (B, S, D)`` as a whole).
            mask: True for real tokens, of the leading shape of ``x``. Others are routed nowhere and counted nowhere;
                their output is zero. The shared module gets zeros in their place, so its gradient must be finite there
                (a norm needs an epsilon).
            routing: A routing made before, by :meth:`route`, to be used again instead of the router.
            plan: The plan of ``routing`` and ``mask``, made before by :meth:`plan`, to be used again.
            stats: Whether to compute statistics. Without them, as in inference, a small call is faster, and
                ``MoEOutput.stats`` is None.

        Returns:
            Output and statistics.

        Raises:
            ValueError: If a shape, dtype or device does not fit; the message names the argument.
        """
        plain = router_input is None and mask is None and routing is None and plan is None
        if plain and torch.compiler.is_dynamo_compiling():
            whole = self._compiled(x, stats)
            if whole is not None:
                return whole
        inputs, lead = self._inputs(x)
        mask_T = flat_mask(mask, inputs[0], lead)
        replayed = routing is not None
        if routing is None:
            if plan is not None:
                raise ValueError("plan must come with the routing that it was made from: give routing too.")
            routing = self._route(inputs[0], router_input, lead, mask_T)
        else:
            check_routing(routing, router_input, lead)
        counted = None
        if plan is None:
            counted = counted_tokens(routing, mask_T)
            plan = self._plan(routing, mask_T, counted)
        if observed():
            notify_observers(self, routing, plan, mask_T)
        # A view of the same shape would be one more node of autograd's graph.
        flat = len(lead) == 1
        tokens = inputs if flat else [each.reshape(-1, *each.shape[len(lead) :]) for each in inputs]
        gates = masked_gates(routing, mask_T)
        rows = tokens if self._experts_part.takes_pyramid else tokens[0]
        shared = None if self.shared is None else Deferred(partial(shared_output, self.shared, x, mask))
        experts: Callable[..., Tensor] = self.experts
        if shared is not None and waits_for_others(self.experts):
            experts = partial(experts, meanwhile=shared)
        compute = experts if self.gates_on == "outputs" else partial(experts_on_gated_inputs, experts)
        y: Tensor = compute(rows, plan, gates)
        y = y if flat else y.reshape(*lead, *y.shape[1:])
        if shared is not None:
            y = y + shared()
        if routing.token_ids is not None:
            routing = routing._replace(gates=gates)  # a replayed routing may have been made under another mask
        if not stats:
            return MoEOutput(y, None)
        # A replayed routing may change before the statistics are read, and a plan may be another routing's.
        summed = make_stats if replayed else stats_of_call
        return MoEOutput(y, summed(routing, plan, mask_T, counted))

    def route(
        self,
        x: Float[Tensor, "... D"] | Sequence[Float[Tensor, "..."]],
        *,
        router_input: Shaped[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Routing:
        """Makes the routing of ``x`` alone, one row per token: to look at, or to replay.

        Args:
            x: As in :meth:`forward`.
            router_input: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            The decisions of the router, one row per token.

        Raises:
            ValueError: If a shape, dtype or device does not fit.
        """
        inputs, lead = self._inputs(x)
        mask_T = flat_mask(mask, inputs[0], lead)
        return self._route(inputs[0], router_input, lead, mask_T)

    def plan(self, routing: Routing, mask: Bool[Tensor, "T"] | None = None) -> DispatchPlan:
        """Orders the slots of a routing by expert.

        Args:
            routing: One row per token.
            mask: ``(T,)``, True for real tokens; all by default.

        Returns:
            The plan, for :meth:`forward` or the experts.

        Raises:
            ValueError: If ``routing`` is for another number of experts, or is expert choice while the layer has a
                capacity factor.
        """
        return self._plan(routing, mask, counted_tokens(routing, mask))

    def extra_repr(self) -> str:
        """Shows the settings that are not a part's own."""
        shown = "dropless"
        if self.capacity_factor is not None:
            shown = f"capacity_factor={self.capacity_factor}, drop_policy={self.drop_policy!r}"
        return shown if self.gates_on == "outputs" else f"{shown}, gates_on={self.gates_on!r}"

    def _plan(self, routing: Routing, mask: Tensor | None, counted: CountedTokens) -> DispatchPlan:
        return plan_routing(
            routing,
            mask,
            counted,
            num_experts=self._experts_part.num_experts,
            capacity=self._capacity,
            drop_policy=self.drop_policy,
            impl=self.impl,
        )

    def _check_settings(self) -> None:
        check_impl(self.impl)
        check_part_impl("router", self.router, self.impl)
        check_part_impl("experts", self.experts, self.impl)
        check_choice("drop_policy", self.drop_policy, DROP_POLICIES)
        check_choice("gates_on", self.gates_on, GATES_ON)
        if self.gates_on == "inputs" and self._router_part.top_k == 0:
            raise ValueError(
                'gates_on="inputs" needs a router that chooses experts for tokens, got expert choice: leave it at '
                '"outputs".'
            )
        if self.capacity_factor is not None and self._router_part.top_k == 0:
            raise ValueError(EXPERT_CHOICE_CAPACITY)
        self._capacity = None if self.capacity_factor is None else Capacity(self.capacity_factor)

    def _compiled(self, x: Tensor | Sequence[Tensor], stats: bool) -> MoEOutput | None:
        """Computes as one operation, which compiled code calls faster than several; None where that does not serve."""
        if self._capacity is not None or self.gates_on != "outputs" or not isinstance(x, Tensor) or x.ndim < 1:
            return None
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        results = compiled_call(self.router, self.experts, rows, self.impl)
        if results is None:
            return None
        y = results[0] if x.ndim == 2 else results[0].reshape(*x.shape[:-1], results[0].shape[1])
        if self.shared is not None:
            y = y + self.shared(x)
        return MoEOutput(y, RouterStats(*results[1 : 1 + len(RouterStats._fields)]) if stats else None)

    def _inputs(self, x: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], torch.Size]:
        part = self._experts_part
        return input_tensors(x, token_ndim=part.token_ndim, takes_pyramid=part.takes_pyramid)

    def _route(self, x: Tensor, router_input: Tensor | None, lead: torch.Size, mask: Tensor | None) -> Routing:
        if router_input is None:
            if self._experts_part.token_ndim != 1 or self._router_part.input_ndim != 1:
                raise ValueError(
                    "router_input must be given: experts over samples and routers by id cannot route on x itself."
                )
            return self._call_router(hide_masked(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), mask), mask)
        rows, shared_by = flat_router_input(router_input, x, lead, self._router_part.input_ndim)
        if self._router_part.takes_tokens:
            if self._experts_part.token_ndim != 1 or self._experts_part.takes_pyramid:
                raise ValueError(
                    "router must read its router_input alone where experts are over samples or pyramids, got one that "
                    f"reads the tokens too, {type(self.router).__name__}."
                )
            rows, tokens = rows_and_tokens(rows, shared_by, x)
            return self._call_router(hide_masked(rows, mask), mask, tokens=hide_masked(tokens, mask))
        if not shared_by:
            return self._call_router(hide_masked(rows, mask), mask)
        routing = self._call_router(rows)
        if routing.token_ids is not None:
            raise ValueError(
                f"router_input must have one row per token of x, {tuple(lead)}, for expert choice, "
                f"got shape {tuple(router_input.shape)}."
            )
        return repeat_decisions(routing, shared_by)

    def _call_router(self, rows: Tensor, mask: Tensor | None = None, **tokens: Tensor) -> Routing:
        routing = self.router(rows, **tokens) if mask is None else self.router(rows, mask, **tokens)
        if not isinstance(routing, Routing):
            raise ValueError(
                f"router must return a Routing, got a {type(routing).__name__} from {type(self.router).__name__}."
            )
        return routing
