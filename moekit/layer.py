"""The sparse layer: router, plan, experts and combine, put together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from moekit.capacity import Capacity
from moekit.checks import check_choice, check_mask, check_same_device
from moekit.experts.activation import ActivationLike
from moekit.experts.base import Experts, input_tensors
from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts, Impl
from moekit.plan import DROP_POLICIES, DispatchPlan, plan_dispatch, plan_expert_choice
from moekit.routers.base import Router
from moekit.routers.top_k import TopKRouter
from moekit.routing import RouterStats, Routing, router_stats
from moekit_kernels.moe_ffn import Recompute


class MoEOutput(NamedTuple):
    """What a layer returns.

    Attributes:
        output: Of the shape of the input (its last dimension may differ with the experts' ``out_dim``); for a
            pyramid one map.
        stats: What was counted, for losses and logs.
    """

    output: Float[Tensor, "... D"]
    stats: RouterStats


class SparseMoE(nn.Module):
    """A sparsely activated Mixture-of-Experts layer: ``y = sum_k gate_k * expert_k(x) + shared(x)``.

    Four parts, each replaceable alone: a router says who goes where, a plan turns ids into an order,
    experts compute, combine brings the slots home. Nothing is written in ``forward``; what was counted
    is returned.

    Args:
        router: Who goes where.
        experts: What is computed.
        shared: A module that sees every token and is added to the routed output.
        capacity_factor: Drops what an expert gets beyond ``ceil(capacity_factor * T * K / E)`` slots, where
            ``T`` counts the unmasked tokens; a dropped slot contributes nothing. Dropless by default.
        drop_policy: Which slots keep their place; see :func:`~moekit.plan.plan_dispatch`.

    Raises:
        ValueError: If router and experts disagree on ``E``, or an option is out of range.

    Example:
        >>> moe = SparseMoE(TopKRouter(64, num_experts=8, top_k=2), FFNExperts(64, 128, 8))
        >>> output, stats = moe(torch.randn(2, 10, 64))
        >>> output.shape, stats.tokens_per_expert.sum().item()
        (torch.Size([2, 10, 64]), 40)
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        shared: nn.Module | None = None,
        capacity_factor: float | None = None,
        drop_policy: str = "position",
    ) -> None:
        super().__init__()
        if router.num_experts != experts.num_experts:
            raise ValueError(
                f"router and experts must agree on the number of experts, got {router.num_experts} "
                f"and {experts.num_experts}."
            )
        check_choice("drop_policy", drop_policy, DROP_POLICIES)
        if capacity_factor is not None and router.top_k == 0:
            raise ValueError("capacity_factor of an expert-choice layer belongs to its router: set it there.")
        self.router = router
        self.experts = experts
        self.shared = shared
        self.capacity_factor = capacity_factor
        self.capacity = None if capacity_factor is None else Capacity(capacity_factor, router.num_experts, router.top_k)
        self.drop_policy = drop_policy

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
            impl: Of experts and router; see :class:`~moekit.experts.ffn.FFNExperts`.
            recompute: See :class:`~moekit.experts.ffn.FFNExperts`.
            device: Device of the parameters.
            dtype: Dtype of the parameters.

        Raises:
            ValueError: If an argument is out of range.

        Example:
            >>> SparseMoE.ffn(64, 128, num_experts=8, top_k=2)(torch.randn(4, 64)).output.shape
            torch.Size([4, 64])
        """
        by_router = "auto" if impl == "torch" else impl
        router = TopKRouter(dim, num_experts, top_k, impl=by_router, device=device, dtype=dtype)
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
        return cls(router, experts, shared=shared, capacity_factor=capacity_factor)

    def forward(
        self,
        x: Float[Tensor, "... D"] | Sequence[Float[Tensor, "..."]],
        *,
        router_input: Shaped[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        routing: Routing | None = None,
    ) -> MoEOutput:
        """Routes, computes and combines.

        Args:
            x: Tokens ``(..., D)``; with experts over samples ``(..., *token)`` of their ``token_ndim``. With experts
                over pyramids a sequence of maps ``(..., C, H, W)`` that share their leading dimensions.
            router_input: What the router sees instead of ``x``. Its leading dimensions are those of ``x``
                (one decision per token) or the first few of them (one decision for all tokens below: a
                context ``(B, Dc)`` routes each sample of ``x (B, S, D)`` as a whole).
            mask: True for real tokens, of the leading shape of ``x``. Others are routed nowhere and
                counted nowhere; their routed output is zero.
            routing: A routing made before, by :meth:`route`, to be used again instead of the router.

        Returns:
            Output and statistics.

        Raises:
            ValueError: If a shape, dtype or device does not fit; the message names the argument.
        """
        inputs, lead = input_tensors(self.experts, x)
        flat_mask = None if mask is None else self._flat_mask(mask, inputs[0], lead)
        if routing is None:
            routing = self._route(inputs[0], router_input, lead, flat_mask)
        elif router_input is not None:
            raise ValueError("router_input and routing exclude each other; give one of them.")
        elif routing.valid.shape[0] != math.prod(lead):
            raise ValueError(f"routing must be for the {lead.numel()} tokens of x, got {routing.valid.shape[0]} rows.")
        tokens = [each.reshape(-1, *each.shape[len(lead) :]) for each in inputs]
        plan = self.plan(routing, flat_mask)
        gates = routing.gates
        if flat_mask is not None and routing.token_ids is None:
            gates = torch.where(flat_mask.unsqueeze(-1), gates, 0)
        y: Tensor = self.experts(tokens if self.experts.takes_pyramid else tokens[0], plan, gates)
        y = y.reshape(*lead, *y.shape[1:])
        if self.shared is not None:
            y = y + self.shared(x)
        return MoEOutput(y, router_stats(routing, plan, flat_mask))

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

        Raises:
            ValueError: If a shape, dtype or device does not fit.
        """
        inputs, lead = input_tensors(self.experts, x)
        flat_mask = None if mask is None else self._flat_mask(mask, inputs[0], lead)
        return self._route(inputs[0], router_input, lead, flat_mask)

    def plan(self, routing: Routing, mask: Bool[Tensor, "T"] | None = None) -> DispatchPlan:
        """Turns a routing into the order in which its slots meet their experts.

        Args:
            routing: One row per token.
            mask: ``(T,)``, True for real tokens.
        """
        num_tokens = routing.valid.shape[0]
        if routing.token_ids is not None:
            return plan_expert_choice(routing.token_ids, num_tokens, kept=routing.kept)
        kept = routing.valid if mask is None else routing.valid & mask
        capacity = None
        if self.capacity is not None:
            count = kept.shape[0] if mask is None else mask.sum()
            capacity = self.capacity(count)
        return plan_dispatch(
            routing.expert_ids,
            self.router.num_experts,
            kept=kept.unsqueeze(-1),
            capacity=capacity,
            gates=routing.gates,
            drop_policy=self.drop_policy,
        )

    def extra_repr(self) -> str:
        """Names the settings that are not a part's own."""
        if self.capacity_factor is None:
            return "dropless"
        return f"capacity_factor={self.capacity_factor}, drop_policy={self.drop_policy!r}"

    @staticmethod
    def _flat_mask(mask: Tensor, x: Tensor, lead: torch.Size) -> Tensor:
        check_mask("mask", mask, lead)
        check_same_device("mask", mask, "x", x)
        return mask.reshape(-1)

    def _route(self, x: Tensor, router_input: Tensor | None, lead: torch.Size, mask: Tensor | None) -> Routing:
        if router_input is None:
            if self.experts.token_ndim != 1 or self.router.input_ndim != 1:
                raise ValueError(
                    "router_input must be given: experts over samples and routers by id cannot route on x itself."
                )
            return self.router(_hide(x.reshape(-1, x.shape[-1]), mask), mask)
        return self._route_on(router_input, x, lead, mask)

    def _route_on(self, router_input: Tensor, x: Tensor, lead: torch.Size, mask: Tensor | None) -> Routing:
        features = self.router.input_ndim
        given = router_input.shape[: router_input.ndim - features]
        if router_input.ndim < features or given != lead[: len(given)]:
            raise ValueError(
                f"router_input must have the leading dimensions of x, {tuple(lead)}, or the first of them"
                f"{' before its features' if features else ''}, got shape {tuple(router_input.shape)}."
            )
        check_same_device("router_input", router_input, "x", x)
        flat = router_input.reshape(-1, *router_input.shape[len(given) :])
        if given == lead:
            return self.router(_hide(flat, mask), mask)
        if self.router.top_k == 0:
            raise ValueError(
                f"router_input must have one row per token of x, {tuple(lead)}, for expert choice, "
                f"got shape {tuple(router_input.shape)}."
            )
        return _repeat(self.router(flat), math.prod(lead[len(given) :]))  # .numel() would fix it in torch.export


def _hide(router_input: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros for padding: what it holds, NaN included, would reach the router's gradient as ``0 * NaN``."""
    if mask is None or not router_input.is_floating_point():
        return router_input
    return torch.where(mask.view(-1, *(1,) * (router_input.ndim - 1)), router_input, 0)


def _repeat(routing: Routing, times: int) -> Routing:
    """One decision per sample becomes the decision of each of its ``times`` tokens."""

    def repeated(field: Tensor) -> Tensor:
        return field.repeat_interleave(times, dim=0)

    return routing._replace(
        gates=repeated(routing.gates),
        expert_ids=repeated(routing.expert_ids),
        logits=None if routing.logits is None else repeated(routing.logits),
        probs=repeated(routing.probs),
        valid=repeated(routing.valid),
        load_probs=None if routing.load_probs is None else repeated(routing.load_probs),
        sums=None,
    )
