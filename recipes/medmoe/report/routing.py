"""The report's view of the router: which expert receives which modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.run import ROUTED_BY, Run
from recipes.shared.report.heat import HeatMap, Label, share_map


@dataclass(frozen=True)
class RoutingSection:
    """Use of the experts.

    Attributes:
        map: Shares of experts by modality.
        routed_by: What chooses the expert.
        purity: Purity of the routing; ``None`` where it is unknown, as are the following.
        purity_is: How it was computed; may be empty.
        accuracy: Share of the images at the expert meant for them.
        confidence: Mean probability of the chosen expert.
    """

    map: HeatMap
    routed_by: str
    purity: float | None
    purity_is: str
    accuracy: float | None
    confidence: float | None


def routing_section(run: Run) -> RoutingSection | None:
    """Returns the use of the experts by modality, or ``None`` where no image has a known modality.

    Args:
        run: The run.
    """
    routing = run.section("routing")
    if not sum(routing.get("counts") or []):
        return None
    return RoutingSection(
        _map(run, routing),
        ROUTED_BY[routing["by"]],
        run.metrics.get("routing_purity"),
        routing.get("purity_is") or "",
        routing["accuracy"],
        routing.get("confidence"),
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
