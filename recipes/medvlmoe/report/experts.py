"""The report's view of the experts: who takes which disease (the paper's Figure 3)."""

from math import log

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import gauge, heat_map
from recipes.shared.report.html import Markup, join, section, tag


def expert_section(run: Run) -> Markup:
    """Heat map of experts by disease with the overall load and the router's entropy.

    Args:
        run: The run; without a mixture the section says so.
    """
    experts = run.metrics.get("experts")
    if not experts:
        return section("Experts", tag("p", "This model has no mixture of experts.", class_="muted"))
    count, top_k, activation = experts["num_experts"], experts["top_k"], experts["activation"]
    rows = [
        (join([name, " ", tag("small", f"n = {positives:,}")]), shares)
        for name, positives, shares in zip(
            activation["classes"], activation["positives"], activation["matrix"], strict=True
        )
    ]
    chart = heat_map(
        rows,
        columns=[f"E{e}" for e in range(count)],
        load=experts["load"],
        top=1 / top_k,
        empty="no positive study",
        total="All studies",
    )
    return section("Experts by disease", chart, _entropy(experts["entropy"], count), caption=_caption(count, top_k))


def _caption(count: int, top_k: int) -> str:
    taken = "one expert" if top_k == 1 else f"{top_k} different experts"
    return (
        f"Share of routed slots by expert among the test studies positive for each class; rows sum to 100%. "
        f"A routing decision takes {taken} of {count}, so no cell exceeds {100 / top_k:.0f}% (full colour), and even "
        f"use is {100 / count:.3g}%. An expert is specialised where a row differs from the last one, “All "
        f"studies”."
    )


def _entropy(nats: float, count: int) -> Markup:
    most = log(count)
    if most == 0:
        return Markup("")
    left = f"Mean router entropy: {nats:.2f} nats"
    return gauge(nats / most, left, f"maximum ln {count} = {most:.2f}")
