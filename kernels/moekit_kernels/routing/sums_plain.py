"""The sums over a routing in which all tokens count, in plain eager code: one node of the graph, few operations.

Statistics are made in every call and differentiated in few. As single operations of autograd they take a quarter of
the time of a training step of one token, so here they are one ``autograd.Function`` whose backward pass, made of
differentiable operations, computes what is asked for.
"""

import math
from array import array
from itertools import chain
from typing import Any, Literal, cast

import torch
from torch import Tensor

# Most probabilities that are summed up in Python; measured in a layer, of 8 experts: 28 µs for 1 token and 45 for 8,
# against 46.
_FEW = 64

_TYPECODES: dict[torch.dtype, Literal["f", "d"]] = {torch.float32: "f", torch.float64: "d"}

_Sums = tuple[Tensor, Tensor, Tensor, Tensor]


class SumsOfAll(torch.autograd.Function):
    """Computes the fields of :class:`~moekit_kernels.routing.sums.RoutingSums`, with gradients of every order."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, ids: Tensor, logits: Tensor | None, probs: Tensor) -> _Sums:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids, logits, probs)
        ctx.gates = (gates.shape, gates.dtype)
        return sums_of_all(gates, ids, logits, probs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum = grads
        ids, logits, probs = ctx.saved_tensors
        d_gates = d_logits = d_probs = None
        if d_gate_sum is not None:
            shape, dtype = ctx.gates
            d_gates = d_gate_sum.index_select(0, ids.flatten()).view(shape).to(dtype)
        if d_logsumexp_sq_sum is not None and logits is not None:
            d_logits = (2 * d_logsumexp_sq_sum) * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1)
        if d_prob_sum is not None:
            d_probs = d_prob_sum.expand_as(probs)
        if d_entropy_sum is not None:
            positive = probs > 0  # the derivative is infinite at 0, where it counts as 0
            log = torch.where(positive, probs, 1.0).log()
            of_entropy = torch.where(positive, -(log + 1), 0) * d_entropy_sum
            d_probs = of_entropy if d_probs is None else d_probs + of_entropy
        return d_gates, None, d_logits, d_probs


def sums_of_all(gates: Tensor, ids: Tensor, logits: Tensor | None, probs: Tensor) -> _Sums:
    """Computes the sums, not to be differentiated."""
    if 0 < probs.numel() <= _FEW and ids.numel() <= _FEW:
        sums = _in_python(gates, ids, logits, probs)
        if sums is not None:
            return sums
    gate_sum = probs.new_zeros(probs.shape[-1]).index_add_(0, ids.flatten(), gates.flatten().to(probs.dtype))
    if logits is None:
        logsumexp_sq_sum = probs.new_zeros(())
    else:
        # As exact as logsumexp, which takes twice the time: the largest log softmax is that of the largest logit.
        lse_T = logits.amax(-1) - logits.log_softmax(-1).amax(-1)
        logsumexp_sq_sum = lse_T.dot(lse_T)
    entropy_sum = cast(Tensor, torch.special.entr(probs)).sum()
    return probs.sum(0), gate_sum, logsumexp_sq_sum, entropy_sum


def load_of_all(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the counts ``(E,)`` in the dtype of the sums."""
    if counts.is_cpu and 0 < counts.shape[0] <= _FEW and dtype in _TYPECODES:
        return torch.frombuffer(array(_TYPECODES[dtype], cast(list[float], counts.tolist())), dtype=dtype)
    return counts.to(dtype)


def _in_python(gates: Tensor, ids: Tensor, logits: Tensor | None, probs: Tensor) -> _Sums | None:
    """Adds up in float64; returns None for numbers that have no logarithm, and dtypes that Python does not know."""
    dtype = probs.dtype
    if dtype not in _TYPECODES:
        return None
    probs_TE = cast(list[list[float]], probs.tolist())
    logits_TE = [] if logits is None else cast(list[list[float]], logits.tolist())
    try:
        entropies = [-p * math.log(p) for p in chain(*probs_TE) if p]
    except ValueError:
        return None
    prob_sum = [sum(column) for column in zip(*probs_TE, strict=True)]
    gate_sum = [0.0] * len(prob_sum)
    slots = zip(
        chain(*cast(list[list[int]], ids.tolist())), chain(*cast(list[list[float]], gates.tolist())), strict=True
    )
    for expert, gate in slots:
        gate_sum[expert] += gate
    squares = [lse * lse for lse in map(_logsumexp, logits_TE)]
    numbers = array(_TYPECODES[dtype], [*prob_sum, *gate_sum, sum(squares), sum(entropies)])
    parts = torch.unsafe_split_with_sizes(torch.frombuffer(numbers, dtype=dtype), [len(prob_sum), len(gate_sum), 1, 1])
    return parts[0], parts[1], parts[2][0], parts[3][0]


def _logsumexp(logits: list[float]) -> float:
    largest = max(logits)
    return largest + math.log(sum([math.exp(logit - largest) for logit in logits]))
