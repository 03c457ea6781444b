"""Figures of a layer, computed from its sums."""

import math
from collections.abc import Mapping
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
        top_k: Experts per token; 0 for expert choice and Soft MoE, and of a collector, where it is not known.
        calls: Calls that were recorded; 0 of a collector.
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


def figures_of(
    name: str, columns: Mapping[str, float], load: Float[Tensor, "E"], dropped: Float[Tensor, "E"], *, top_k: int = 0
) -> LayerSummary:
    """Computes the figures from sums.

    Args:
        name: Name of the layer.
        columns: Sums of ``COLUMNS``; a figure whose sum is missing is ``None``.
        load: Slots of each expert before any is dropped.
        dropped: Slots of each expert over its capacity.
        top_k: Experts per token.
    """
    num_experts = len(load)
    slots, tokens = int(load.sum()), int(columns["tokens"])
    most = math.log(num_experts)
    busiest = int(load.argmax()) if slots else None
    max_violation = load_entropy = None
    if slots:
        max_violation = float(load.max()) * num_experts / slots - 1
        load_entropy = float(entropy(load / slots)) / most if most else 1.0
    prob_entropy = _ratio(columns.get("entropy_sum"), columns.get("entropy_tokens"))
    if prob_entropy is not None:
        prob_entropy = prob_entropy / most if most else 0.0
    return LayerSummary(
        name,
        num_experts,
        top_k,
        int(columns.get("calls", 0)),
        tokens,
        slots,
        max_violation,
        load_entropy,
        prob_entropy,
        confidence=_ratio(columns.get("confidence_sum"), columns.get("confidence_tokens")),
        dropped=_ratio(float(dropped.sum()), float(slots)),
        dead_experts=int((load == 0).sum()),
        busiest=busiest,
        busiest_share=None if busiest is None else float(load[busiest]) / slots,
        unrouted=_ratio(columns.get("unrouted_tokens"), columns["tokens"]),
        nonfinite_tokens=int(columns["nonfinite_tokens"]),
    )


def _summary(name: str, layer: LayerRecord, window: Float[Tensor, "columns"]) -> LayerSummary:
    window = window.cpu()
    columns: dict[str, float] = dict(zip(COLUMNS, cast(list[float], window[: len(COLUMNS)].tolist()), strict=True))
    load, dropped = window[len(COLUMNS) :].reshape(2, layer.num_experts)
    return figures_of(name, columns, load, dropped, top_k=layer.top_k)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
