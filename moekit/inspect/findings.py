"""What is wrong with the routing of a layer, in words."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.summary import LayerSummary, summary

Severity = Literal["collapse", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("collapse", "warning", "note")


class Thresholds(NamedTuple):
    """From where something is worth saying.

    Attributes:
        collapse: Share of the slots that go to the ``K`` busiest experts, from which a layer has collapsed; but at
            least half-way between an equal share ``K / E`` and 1.
        starved: An expert is starved with less than this share of an equal load; one without any slot is dead.
        max_violation: ``max(load) / mean(load) - 1`` from which the load is called uneven.
        dropped: Share of the slots over capacity.
        unrouted: Share of the tokens without any expert.
        undecided: Entropy of the probabilities over ``ln E``, from which the router is called undecided.
        together: Of the tokens that chose one of two experts, the share that chose both.
        growth: Factor by which the violation of the last quarter of the record is above that of the first.
        least_slots: Slots per expert below which chance alone leaves experts empty, so that nothing is concluded.
    """

    collapse: float = 0.9
    starved: float = 0.01
    max_violation: float = 1.0
    dropped: float = 0.05
    unrouted: float = 0.05
    undecided: float = 0.98
    together: float = 0.9
    growth: float = 2.0
    least_slots: int = 10


class Finding(NamedTuple):
    """Something that is wrong with a layer.

    Attributes:
        layer: Name of the layer.
        severity: ``"collapse"``, ``"warning"`` or ``"note"``.
        text: In words, without the name of the layer.
    """

    layer: str
    severity: Severity
    text: str


def findings_of(layers: Mapping[str, LayerRecord], thresholds: Thresholds) -> list[Finding]:
    """Returns what is wrong with layers, the worst first."""
    findings = [
        Finding(name, severity, text)
        for name, layer in layers.items()
        for severity, text in _of_layer(name, layer, thresholds)
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def described(findings: Sequence[Finding]) -> str:
    """Returns findings as text, one line for each layer."""
    if not findings:
        return "No layer shows collapse, dead experts or drops."
    by_layer: dict[str, list[str]] = {}
    for finding in findings:
        by_layer.setdefault(finding.layer, []).append(finding.text)
    return "\n".join(f"{layer}: {'; '.join(texts)}." for layer, texts in by_layer.items())


def _of_layer(name: str, layer: LayerRecord, at: Thresholds) -> list[tuple[Severity, str]]:
    figures = summary(name, layer)
    if figures.nonfinite_tokens and not figures.slots:
        return [("collapse", f"all {figures.nonfinite_tokens:,} tokens have router logits that are not finite")]
    results: list[tuple[Severity, str]] = []
    if figures.nonfinite_tokens:
        results.append(("warning", f"{figures.nonfinite_tokens:,} tokens have router logits that are not finite"))
    if not figures.slots:
        return [*results, ("warning", "no token was routed")]
    if figures.unrouted is not None and figures.unrouted >= at.unrouted:
        results.append(("warning", f"{_percent(figures.unrouted)} of tokens get no expert"))
    if figures.dropped is not None and figures.dropped >= at.dropped:
        results.append(("warning", f"{_percent(figures.dropped)} of slots are dropped over capacity"))
    decides = figures.num_experts > 1 and bool(layer.coactivation.any())
    if decides and figures.prob_entropy is not None and figures.prob_entropy >= at.undecided:
        text = f"the router is undecided: the entropy of its probabilities is {_percent(figures.prob_entropy)} of ln E"
        results.append(("note", text))
    if figures.slots < at.least_slots * figures.num_experts:
        text = f"{figures.slots:,} slots for {figures.num_experts} experts are too few to judge the load"
        return [*results, ("note", text)]
    return [*_of_load(layer, figures, at), *results, *_of_time(layer, at), *_of_pairs(layer, figures, at)]


def _of_load(layer: LayerRecord, figures: LayerSummary, at: Thresholds) -> list[tuple[Severity, str]]:
    load = layer.load.sum(0)
    num_experts, top_k = figures.num_experts, max(figures.top_k, 1)
    results: list[tuple[Severity, str]] = []
    order = load.argsort(descending=True, stable=True)
    busiest_share = float(load[order[:top_k]].sum()) / figures.slots
    if top_k < num_experts and busiest_share >= max(at.collapse, (1 + top_k / num_experts) / 2):
        busiest = sorted(_ids(order[:top_k]))
        results.append(("collapse", f"{_percent(busiest_share)} of slots go to {_experts(busiest)}"))
    elif figures.max_violation is not None and figures.max_violation >= at.max_violation:
        text = f"expert {figures.busiest} gets {figures.max_violation + 1:.1f} times an equal share of the slots"
        if figures.top_k > 1:
            text += f": {_percent(float(load[order[0]]) / figures.tokens)} of the tokens choose it"
        results.append(("warning", text))
    dead = _ids((load == 0).nonzero().flatten())
    if dead:
        results.append(("warning", f"{_some(dead, num_experts)} none ({_listed(dead)})"))
    starved = _ids(((load > 0) & (load < at.starved * figures.slots / num_experts)).nonzero().flatten())
    if starved:
        text = f"{_some(starved, num_experts)} less than {_percent(at.starved)} of an equal share"
        results.append(("warning", f"{text} ({_listed(starved)})"))
    return results


def _of_time(layer: LayerRecord, at: Thresholds) -> list[tuple[Severity, str]]:
    quarter = len(layer.windows) // 4
    if not quarter:
        return []
    # Of the sums: in a window of few slots the largest load is far above the mean by chance.
    loads = torch.stack([layer.load[:quarter].sum(0), layer.load[-quarter:].sum(0)])
    if float(loads.sum(-1).min()) < at.least_slots * layer.num_experts:
        return []
    first, last = cast(list[float], (loads.amax(-1) / loads.mean(-1)).tolist())
    if last - 1 < at.max_violation or last - 1 < at.growth * (first - 1):
        return []
    return [("warning", f"the imbalance grows: max/mean went from {first:.1f} to {last:.1f}")]


def _of_pairs(layer: LayerRecord, figures: LayerSummary, at: Thresholds) -> list[tuple[Severity, str]]:
    if not 2 <= figures.top_k < figures.num_experts:
        return []
    both = layer.coactivation
    alone = both.diagonal()
    either = (alone.unsqueeze(0) + alone.unsqueeze(1) - both).clamp(min=1)
    used = alone > at.starved * figures.slots / figures.num_experts
    share = (both / either * (used.unsqueeze(0) & used.unsqueeze(1))).triu(1)
    pairs = cast(list[list[int]], (share >= at.together).nonzero().tolist())
    return [
        ("note", f"experts {i} and {j} are chosen together by {_percent(float(share[i, j]))} of their tokens")
        for i, j in pairs[:3]
    ]


def _ids(experts: Tensor) -> list[int]:
    return cast(list[int], experts.to(torch.int64).tolist())


def _some(ids: Sequence[int], num_experts: int) -> str:
    return f"{len(ids)} of {num_experts} experts {'gets' if len(ids) == 1 else 'get'}"


def _experts(ids: Sequence[int]) -> str:
    return f"expert {ids[0]}" if len(ids) == 1 else f"experts {_listed(ids)}"


def _listed(ids: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, ids[:most]))
    return shown if len(ids) <= most else f"{shown}, ..."


def _percent(share: float) -> str:
    """Returns a share in percent; never 100 % of what is not all."""
    percent = f"{100 * share:.0f}" if share < 0.995 or share > 1 - 1e-6 else f"{min(100 * share, 99.9):.1f}"
    return f"{percent} %"
