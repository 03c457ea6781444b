"""Routers of fewer experts, made of a router of more.

Letters: T tokens, E experts, G groups of them, K experts per token.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit.interop.upcycling.usage import refuse_layer
from moekit.routers.base import Router
from moekit.routers.gate import Gate
from moekit.routers.hard import HardRouter
from moekit.routers.top_k import TopKRouter
from moekit.routing import Routing
from moekit_kernels.routing.selection import top_k_ids


class MergedRouter(Router):
    """Chooses groups of experts by a router of single ones, whose decisions for the members of a group it adds up.

    Probabilities and gates are summed by group, logits by ``logsumexp``. A token gets ``min(K, G)`` different groups:
    where two of its experts are in one group, the next most probable group fills the place with a gate of 0. So where
    the members of a group were alike, the layer computes what it did.

    Args:
        router: Router of ``E`` experts, which returns probabilities.
        group_of_expert: ``E`` numbers of groups, each from 0 to ``G - 1`` at least once.

    Raises:
        ValueError: If ``group_of_expert`` is not that, or the router chooses tokens.

    Reference:
        Li et al. 2024, Merge, Then Compress, https://arxiv.org/abs/2310.01334: routing stays, experts are merged.
    """

    group_of_expert: Int[Tensor, "E"]

    def __init__(self, router: Router, group_of_expert: Sequence[int]) -> None:
        super().__init__()
        groups = sorted(set(group_of_expert))
        if len(group_of_expert) != router.num_experts or groups != list(range(len(groups))):
            raise ValueError(
                f"group_of_expert must give each of the {router.num_experts} experts a group, numbered from 0 without "
                f"gaps, got {list(group_of_expert)}."
            )
        if router.top_k == 0:
            raise ValueError(f"router must choose experts for each token, got a {type(router).__name__}.")
        self.router = router
        self.num_experts = len(groups)
        self.top_k = min(router.top_k, len(groups))
        self.input_ndim = router.input_ndim
        device = next(router.parameters()).device
        self.register_buffer("group_of_expert", torch.tensor(list(group_of_expert), device=device))
        self._make_read_only("num_experts", "top_k", "input_ndim")

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates and ids of groups ``(T, K)``, logits and probabilities ``(T, G)``.

        Raises:
            ValueError: If the router within refuses ``x``, returns no probabilities, or leaves slots unused.
        """
        routing: Routing = self.router(x, mask)
        if routing.probs is None or routing.logits is None:
            raise ValueError("router must return probabilities, got a routing without: set its return_logits to True.")
        if routing.kept is not None:
            raise ValueError(
                f"router must have the same number of experts for every token, got a {type(self.router).__name__}."
            )
        group = self.group_of_expert
        ids_TK = group[routing.expert_ids]
        gates_TG = self._summed(routing.gates, ids_TK)
        chosen_TG = torch.zeros_like(gates_TG).scatter_(1, ids_TK, 1.0)
        probs_TG = self._summed(routing.probs, group.expand_as(routing.probs))
        # Probabilities are at most 1, so the groups of chosen experts rank before all others.
        ids = top_k_ids(2 * chosen_TG + probs_TG.detach().to(chosen_TG), self.top_k)
        gates = torch.where(routing.valid.unsqueeze(-1), gates_TG.gather(1, ids), torch.nan)
        return Routing(gates, ids, self._log_summed(routing.logits), probs_TG, routing.valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}"

    def _summed(self, values: Tensor, ids: Tensor) -> Tensor:
        return values.new_zeros(values.shape[0], self.num_experts).scatter_add(1, ids, values)

    def _log_summed(self, logits: Tensor) -> Tensor:
        largest = logits.detach().amax(-1, keepdim=True)
        summed = self._summed((logits - largest).exp(), self.group_of_expert.expand_as(logits))
        # A sum that vanishes beside the others would have an infinite logarithm.
        return summed.clamp(min=torch.finfo(summed.dtype).tiny).log() + largest


def router_of(name: str, router: nn.Module, experts: Sequence[int]) -> Router:
    """Builds a router of some of the experts, in the given order, with the weights and settings that it has for them.

    Args:
        name: Name of the layer, for messages.
        router: The router.
        experts: Ids of the experts.

    Raises:
        ValueError: If the router is not understood.
    """
    if type(router) is MergedRouter:
        groups = cast(list[int], router.group_of_expert.tolist())
        inner = [expert for expert, group in enumerate(groups) if group in experts]
        merged = MergedRouter(router_of(name, router.router, inner), [experts.index(groups[each]) for each in inner])
        return merged.train(router.training)
    check_router(name, router)
    assert isinstance(router, TopKRouter | HardRouter)
    gate = _gate_of(router.gate, experts)
    smaller: TopKRouter | HardRouter
    if isinstance(router, HardRouter):
        smaller = HardRouter(gate.dim, len(experts), gradient=router.gradient, device="meta")
        smaller.gate = gate
    else:
        smaller = TopKRouter(
            gate.dim,
            len(experts),
            router.top_k,
            scoring=router.scoring,
            renormalize=router.renormalize,
            scaling_factor=router.scaling_factor,
            jitter=router.jitter,
            selection_bias=router.selection_bias is not None,
            gate=gate,
            return_logits=router.return_logits,
            impl=router.impl,
        )
        if router.selection_bias is not None:
            smaller.selection_bias = router.selection_bias[list(experts)]
    return smaller.train(router.training)


def check_router(name: str, router: nn.Module) -> None:
    """Raises ``ValueError`` unless a router is one of :class:`TopKRouter` or :class:`HardRouter` with a known gate."""
    if type(router) is MergedRouter:
        return check_router(name, router.router)
    if not isinstance(router, TopKRouter | HardRouter) or type(router) not in (TopKRouter, HardRouter):
        refuse_layer(name, f"has a router of class {type(router).__name__}, not TopKRouter or HardRouter")
    if isinstance(router, TopKRouter) and (router.noise_gate is not None or router.num_groups is not None):
        refuse_layer(name, "has a router with noisy=True or num_groups, which have no smaller form")
    last = router.gate.layers[-1] if type(router.gate) is Gate else None
    if last is None or not isinstance(last, nn.Linear):
        refuse_layer(
            name, f"has a gate of its own or a wrapped one, {type(router.gate).__name__}: shrink before wrapping"
        )
    return None


def gates_sum(router: nn.Module) -> float | None:
    """Returns the sum of the gates of each token, or None where it is not the same for all."""
    if isinstance(router, MergedRouter):
        return gates_sum(router.router)
    if isinstance(router, TopKRouter):
        return router.scaling_factor if router.renormalize or router.scoring == "topk_softmax" else None
    return 1.0 if isinstance(router, HardRouter) and router.gradient != "scale" else None


def _gate_of(gate: nn.Module, experts: Sequence[int]) -> Gate:
    assert isinstance(gate, Gate)
    smaller = copy.deepcopy(gate)
    last = smaller.layers[-1]
    assert isinstance(last, nn.Linear)
    index = torch.tensor(list(experts), device=last.weight.device)
    for name, tensor in list(last.named_parameters()):
        setattr(last, name, nn.Parameter(tensor.detach()[index].clone(), tensor.requires_grad))
    last.out_features = len(experts)
    return smaller
