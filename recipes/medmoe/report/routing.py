"""The report's view of the router: which expert receives which modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from recipes.medmoe.report.run import ROUTED_BY, Run
from recipes.shared.report.heat import HeatMap, Label, share_map


@dataclass(frozen=True)
class RoutingSection:
    """Use of the experts.

    Attributes:
        map: Shares of experts by modality; ``None`` where no image has a known one.
        routed_by: What chooses the expert.
        purity: Purity of the routing; ``None`` where it is unknown, as are the following.
        purity_is: How it was computed; may be empty.
        accuracy: Share of the images at the expert meant for them.
        confidence: Mean probability of the chosen expert.
        load: Balance of the experts in words; empty for runs of before it was measured.
        warning: Which experts should live and do not, in words; ``None`` where there is nothing to warn of.
    """

    map: HeatMap | None
    routed_by: str
    purity: float | None
    purity_is: str
    accuracy: float | None
    confidence: float | None
    load: str
    warning: str | None


def routing_section(run: Run) -> RoutingSection | None:
    """Returns the use of the experts by modality, or ``None`` where nothing is known of it.

    Args:
        run: The run.
    """
    routing = run.section("routing")
    known = sum(routing.get("counts") or []) > 0
    if not known and "live_experts" not in routing:
        return None
    return RoutingSection(
        _map(run, routing) if known else None,
        ROUTED_BY[routing["by"]],
        run.metrics.get("routing_purity"),
        routing.get("purity_is") or "",
        routing["accuracy"],
        routing.get("confidence"),
        _load(routing),
        routing.get("warning"),
    )


def _load(routing: Mapping[str, Any]) -> str:
    if "live_experts" not in routing:
        return ""
    expected = routing.get("live_expected")
    modalities = "" if expected is None else f"; the images are of {expected} modalities"
    return (
        f"{routing['live_experts']} of {routing['experts']} experts live{modalities}. Entropy of the load "
        f"{routing['load_entropy']:.2f} of at most {log(routing['experts']):.2f} nats; the busiest expert has "
        f"{routing['max_violation'] + 1:.2f} times an equal share."
    )


def _map(run: Run, routing: Mapping[str, Any]) -> HeatMap:
    counts, matrix, experts = routing["counts"], routing["matrix"], range(routing["experts"])
    rows = [
        (Label(name, f"n = {count:,}"), shares)
        for name, count, shares in zip(routing["modalities"], counts, matrix, strict=True)
    ]
    load = [
        sum(count * shares[k] for count, shares in zip(counts, matrix, strict=True) if shares) / sum(counts)
        for k in experts
    ]
    columns = [Label(f"E{k}", run.expert_name(k) or "spare") for k in experts]
    return share_map(rows, columns=columns, load=load, top=1.0, empty="no test image", total="All images")
