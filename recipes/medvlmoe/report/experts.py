"""The report's view of the experts: which classes of disease each expert receives (the paper's Figure 3)."""

from dataclasses import dataclass
from math import log

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import Gauge
from recipes.shared.report.heat import HeatMap, Label, share_map


@dataclass(frozen=True)
class ExpertSection:
    """Use of the experts.

    Attributes:
        num_experts: Number of experts.
        top_k: Experts per routing decision.
        map: Shares of experts by disease.
        entropy: Mean router entropy; ``None`` for a single expert.
    """

    num_experts: int
    top_k: int
    map: HeatMap
    entropy: Gauge | None


def expert_section(run: Run) -> ExpertSection | None:
    """Returns the use of the experts by disease, or ``None`` for a model without a mixture.

    Args:
        run: The run.
    """
    experts = run.metrics.get("experts")
    if not experts:
        return None
    count, top_k, activation = experts["num_experts"], experts["top_k"], experts["activation"]
    rows = [
        (Label(name, f"n = {positives:,}"), shares)
        for name, positives, shares in zip(
            activation["classes"], activation["positives"], activation["matrix"], strict=True
        )
    ]
    chart = share_map(
        rows,
        columns=[Label(f"E{e}") for e in range(count)],
        load=experts["load"],
        top=1 / top_k,
        empty="no positive study",
        total="All studies",
    )
    return ExpertSection(count, top_k, chart, _entropy(experts["entropy"], count))


def _entropy(nats: float, count: int) -> Gauge | None:
    highest = log(count)
    if highest == 0:
        return None
    return Gauge(nats / highest, f"Mean router entropy: {nats:.2f} nats", f"maximum ln {count} = {highest:.2f}")
