"""What the operation of a whole layer computes with and writes, and which gradients it has."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.moe_ffn.operands import ExpertWeights


class Weights(NamedTuple):
    """The weights of a layer.

    Attributes:
        gate: ``(E, D)``, of the router's linear layer.
        gate_bias: ``(E,)``.
        experts: Of the experts.
    """

    gate: Float[Tensor, "E D"]
    gate_bias: Float[Tensor, "E"] | None
    experts: ExpertWeights


class LayerStats(NamedTuple):
    """Counts and sums of a call, over tokens with finite logits.

    Attributes:
        tokens_per_expert: ``(E,)`` int64, slots of each expert.
        dropped_per_expert: ``(E,)`` int64, zero.
        prob_sum: ``(E,)``, sum of the probabilities.
        gate_sum: ``(E,)``, sum of the gates.
        load: ``(E,)``, the slots as float32; no gradient.
        logsumexp_sq_sum: ``()``, sum of ``logsumexp(logits)**2``.
        entropy_sum: ``()``, sum of the entropies of the probabilities.
        num_tokens: ``()`` int64.
        nonfinite_tokens: ``()`` int64, tokens that were left out.
    """

    tokens_per_expert: Int[Tensor, "E"]
    dropped_per_expert: Int[Tensor, "E"]
    prob_sum: Float[Tensor, "E"]
    gate_sum: Float[Tensor, "E"]
    load: Float[Tensor, "E"]
    logsumexp_sq_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    nonfinite_tokens: Int[Tensor, ""]


class StatsGradients(NamedTuple):
    """Gradients of the fields of :class:`LayerStats` that have one; None counts as zero."""

    prob_sum: Float[Tensor, "E"] | None
    gate_sum: Float[Tensor, "E"] | None
    logsumexp_sq_sum: Float[Tensor, ""] | None
    entropy_sum: Float[Tensor, ""] | None


class Needs(NamedTuple):
    """Which gradients are needed: of tokens, gate and its bias, and the two products of the experts."""

    x: bool
    gate: bool
    gate_bias: bool
    up: bool
    down: bool

    @property
    def of_gates(self) -> bool:
        """Whether a gradient goes through the router."""
        return self.x or self.gate or self.gate_bias
