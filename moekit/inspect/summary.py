"""Figures of a layer, computed from its sums."""

import math
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor

from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.windows import COLUMNS
from moekit.routing import entropy


class LayerSummary(NamedTuple):
    """Figures of one layer; ``None`` where the layer has no such figure or routed nothing.

    Attributes:
        name: Name of the layer.
        num_experts: ``E``.
        top_k: Experts per token; 0 for expert choice and Soft MoE.
        calls: Calls that were recorded.
        tokens: Tokens that were routed.
        slots: Slots routed to experts, before any is dropped.
        max_violation: ``max(load) / mean(load) - 1``: 0 at balance, ``E / K - 1`` where all tokens choose the same
            experts. Wang et al. 2024, https://arxiv.org/abs/2408.15664, equation 4 (MaxVio).
        load_entropy: Entropy of the shares of the slots, over its maximum ``ln E``: 1 at balance.
        prob_entropy: Mean entropy of the router's probabilities for a token, over ``ln E``: 1 for an undecided router,
            0 for a certain one. It tells nothing about balance.
        confidence: Mean over tokens of the largest probability.
        dropped: Share of the slots that were over capacity.
        dead_experts: Experts that got no slot at all.
        busiest: The expert of most slots.
        busiest_share: Its share of the slots.
        unrouted: Share of the tokens that got no expert.
        nonfinite_tokens: Tokens left out, as their logits were not finite.
    """

    name: str
    num_experts: int
    top_k: int
    calls: int
    tokens: int
    slots: int
    max_violation: float | None
    load_entropy: float | None
    prob_entropy: float | None
    confidence: float | None
    dropped: float | None
    dead_experts: int
    busiest: int | None
    busiest_share: float | None
    unrouted: float | None
    nonfinite_tokens: int


def summary(name: str, layer: LayerRecord) -> LayerSummary:
    """Returns the figures of a layer over the whole record."""
    return _summary(name, layer, layer.windows.sum(0))


def latest_summary(name: str, layer: LayerRecord) -> LayerSummary:
    """Returns the figures of a layer over the last window of time."""
    return _summary(name, layer, layer.windows[-1:].sum(0))


def summaries_over_time(name: str, layer: LayerRecord) -> list[LayerSummary]:
    """Returns the figures of a layer for each window of time."""
    return [_summary(name, layer, window) for window in layer.windows]


def _summary(name: str, layer: LayerRecord, window: Float[Tensor, "columns"]) -> LayerSummary:
    window = window.cpu()
    num_experts = layer.num_experts
    columns = dict(zip(COLUMNS, cast(list[float], window[: len(COLUMNS)].tolist()), strict=True))
    load, dropped = window[len(COLUMNS) :].reshape(2, num_experts)
    slots, tokens = int(load.sum()), int(columns["tokens"])
    most = math.log(num_experts)
    busiest = int(load.argmax()) if slots else None
    max_violation = load_entropy = None
    if slots:
        max_violation = float(load.max()) * num_experts / slots - 1
        load_entropy = float(entropy(load / slots)) / most if most else 1.0
    prob_entropy = _ratio(columns["entropy_sum"], columns["entropy_tokens"])
    if prob_entropy is not None:
        prob_entropy = prob_entropy / most if most else 0.0
    return LayerSummary(
        name,
        num_experts,
        layer.top_k,
        int(columns["calls"]),
        tokens,
        slots,
        max_violation,
        load_entropy,
        prob_entropy,
        confidence=_ratio(columns["confidence_sum"], columns["confidence_tokens"]),
        dropped=_ratio(float(dropped.sum()), slots),
        dead_experts=int((load == 0).sum()) if slots else num_experts,
        busiest=busiest,
        busiest_share=None if busiest is None else float(load[busiest]) / slots,
        unrouted=_ratio(columns["unrouted_tokens"], tokens),
        nonfinite_tokens=int(columns["nonfinite_tokens"]),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
