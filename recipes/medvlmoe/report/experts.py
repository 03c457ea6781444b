"""The report's view of the experts: which classes of disease each expert receives (the paper's Figure 3)."""

from dataclasses import dataclass
from math import log
from typing import Any

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import Gauge
from recipes.shared.report.heat import HeatMap, Label, share_map
from recipes.shared.scores.expert_load import load_measures


@dataclass(frozen=True)
class ExpertSection:
    """Use of the experts.

    Attributes:
        num_experts: Number of experts.
        top_k: Experts per routing decision.
        map: Shares of experts by disease.
        balance: Entropy of the load; ``None`` for a single expert.
        undecided: In words: the entropy of the router's probabilities, which tells nothing of the load.
        warning: Which experts are dead, in words; ``None`` where all live.
    """

    num_experts: int
    top_k: int
    map: HeatMap
    balance: Gauge | None
    undecided: str
    warning: str | None


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
    # Of the load itself, so that runs evaluated before there were these measures have them too.
    measures = load_measures(experts["load"], top_k=top_k, decisions=run.metrics["run"].get("studies", {}).get("test"))
    undecided = (
        f"Entropy of a study's router probabilities: {experts['entropy']:.2f} of at most {log(count):.2f} nats. A high "
        "one means that the router is undecided about each study, not that experts are used alike."
    )
    return ExpertSection(count, top_k, chart, _balance(measures, count), undecided, measures["warning"])


def _balance(measures: dict[str, Any], count: int) -> Gauge | None:
    highest = log(count)
    if highest == 0:
        return None
    nats = measures["load_entropy"]
    return Gauge(
        nats / highest,
        f"Entropy of the load: {nats:.2f} nats; {measures['live_experts']} of {count} experts live",
        f"maximum ln {count} = {highest:.2f}",
        bad=measures["warning"] is not None,
    )
