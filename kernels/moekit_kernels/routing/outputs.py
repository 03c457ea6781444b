"""What the routing kernels write, and which gradients come back."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters

_GROUP = 32
_PARTIALS = 2048


class RouteOutputs(NamedTuple):
    """What the forward kernels write; fields as in ``Routed``, ``RoutingCounts`` and ``RoutingSums``.

    Attributes:
        gates: ``(T, K)`` float32, and so are the other numbers.
        ids: ``(T, K)`` int64.
        logits: ``(T, E)``, zero for tokens that are not valid; empty unless asked for.
        probs: ``(T, E)``; empty unless asked for.
        valid: ``(T,)`` bool.
        tokens_per_expert: ``(E,)`` int64.
        load: ``(E,)``, the same as float32.
        num_tokens: ``()`` int64.
        nonfinite_tokens: ``()`` int64.
        prob_sum: ``(E,)``.
        gate_sum: ``(E,)``.
        logsumexp_sq_sum: ``()``.
        entropy_sum: ``()``.
    """

    gates: Tensor
    ids: Tensor
    logits: Tensor
    probs: Tensor
    valid: Tensor
    tokens_per_expert: Tensor
    load: Tensor
    num_tokens: Tensor
    nonfinite_tokens: Tensor
    prob_sum: Tensor
    gate_sum: Tensor
    logsumexp_sq_sum: Tensor
    entropy_sum: Tensor

    def kernel_arguments(self) -> dict[str, Any]:
        """Returns the arguments of a kernel that writes them; None for what was not asked for."""
        return {
            "gates": self.gates,
            "ids": self.ids,
            "finite_logits": self.logits if self.logits.ndim == 2 else None,
            "probs": self.probs if self.probs.ndim == 2 else None,
            "valid_rows": self.valid,
            "tokens_per_expert": self.tokens_per_expert,
            "load": self.load,
            "prob_sum": self.prob_sum,
            "gate_sum": self.gate_sum,
            "num_routed": self.num_tokens,
            "num_nonfinite": self.nonfinite_tokens,
            "logsumexp_sq_sum": self.logsumexp_sq_sum,
            "entropy_sum": self.entropy_sum,
        }


class RouteGradients(NamedTuple):
    """Gradients of the float fields of :class:`RouteOutputs`, in their shapes; None counts as zero."""

    gates: Tensor | None
    logits: Tensor | None
    probs: Tensor | None
    prob_sum: Tensor | None
    gate_sum: Tensor | None
    logsumexp_sq_sum: Tensor | None
    entropy_sum: Tensor | None

    def kernel_arguments(self) -> dict[str, Any]:
        """Returns the arguments of a kernel that reads them.

        The two of shape ``(T, E)`` are read by their strides, the others are copied if they are not contiguous.
        """
        # Outputs that were not asked for are empty, and so are their gradients.
        logits, probs = (None if t is None or t.ndim < 2 else t for t in (self.logits, self.probs))
        others = {name: grad for name, grad in self._asdict().items() if name not in ("logits", "probs")}
        return {
            **{f"d_{name}": None if grad is None else grad.contiguous() for name, grad in others.items()},
            "d_finite_logits": logits,
            "d_probs": probs,
            "stride_logits_t": 0 if logits is None else logits.stride(0),
            "stride_logits_e": 0 if logits is None else logits.stride(1),
            "stride_probs_t": 0 if probs is None else probs.stride(0),
            "stride_probs_e": 0 if probs is None else probs.stride(1),
        }


FLOAT_OUTPUTS = tuple(RouteOutputs._fields.index(name) for name in RouteGradients._fields)
"""The outputs that have a gradient, by their place."""


def outputs(
    like: Tensor,
    num_tokens: int,
    num_experts: int,
    top_k: int,
    with_logits: bool,
    with_probs: bool,
    memory: Mapping[str, Tensor] = MappingProxyType({}),
) -> RouteOutputs:
    """Returns uninitialised outputs on the device of ``like``.

    Gates, ids, logits and valid rows are those in ``memory``, if they are there.
    """
    float32, int64 = torch.float32, torch.int64
    whole = (num_tokens, num_experts)

    def kept(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return memory[name] if name in memory else like.new_empty(shape, dtype=dtype)

    return RouteOutputs(
        gates=kept("gates", (num_tokens, top_k), float32),
        ids=kept("ids", (num_tokens, top_k), int64),
        logits=kept("logits", whole if with_logits else (0,), float32),
        probs=like.new_empty(whole if with_probs else (0,), dtype=float32),
        valid=kept("valid", (num_tokens,), torch.bool),
        tokens_per_expert=like.new_empty(num_experts, dtype=int64),
        load=like.new_empty(num_experts, dtype=float32),
        num_tokens=like.new_empty((), dtype=int64),
        nonfinite_tokens=like.new_empty((), dtype=int64),
        prob_sum=like.new_empty(num_experts, dtype=float32),
        gate_sum=like.new_empty(num_experts, dtype=float32),
        logsumexp_sq_sum=like.new_empty((), dtype=float32),
        entropy_sum=like.new_empty((), dtype=float32),
    )


def sum_arguments(
    device: torch.device, num_partials: int, num_experts: int, width: int, more_counters: int = 0
) -> Mapping[str, Any]:
    """Returns what the kernels need to add up the sums of ``num_partials`` programs, of ``width`` columns each.

    The counters are those of ``kernel_sums`` and ``more_counters`` behind them.
    """
    groups = -(-num_partials // _GROUP)
    return {
        "partials": torch.empty(num_partials + groups, 3 * num_experts + 4, dtype=torch.int32, device=device),
        "counters": arrival_counters(device, 1 + groups + more_counters),
        "GROUP": _GROUP,
        "ONE_GROUP": groups == 1,
        "BLOCK_P": min(max(_PARTIALS // width, 1), _GROUP),
    }
