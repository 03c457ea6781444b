"""The report's view of the router: which expert takes which kind of image."""

from recipes.medmoe.report.run import DECIDES, Run
from recipes.shared.report.bars import heat_map
from recipes.shared.report.html import Markup, join, section, tag


def routing_section(run: Run) -> Markup:
    """Heat map of modality by expert with the overall load.

    Args:
        run: The run; without known modalities the section says so.
    """
    routing = run.section("routing")
    counts = routing.get("counts") or []
    if not sum(counts):
        return section("Routing", tag("p", "No test image has a known modality.", class_="muted"))
    experts = routing["experts"]
    rows = [
        (join([name, " ", tag("small", f"n = {count:,}")]), shares)
        for name, count, shares in zip(routing["modalities"], counts, routing["matrix"], strict=True)
    ]
    load = [
        sum(count * shares[k] for count, shares in zip(counts, routing["matrix"], strict=True) if shares) / sum(counts)
        for k in range(experts)
    ]
    columns = [join([f"E{k}", tag("small", run.expert_name(k) or "spare")]) for k in range(experts)]
    chart = heat_map(rows, columns=columns, load=load, top=1.0, empty="no test image", total="All images")
    return section("Routing: modality by expert", chart, caption=_caption(run))


def _caption(run: Run) -> str:
    routing, purity = run.section("routing"), run.metrics.get("routing_purity")
    parts = [
        f"Share of the test images of each modality that each expert takes; one expert runs per image, chosen by "
        f"{DECIDES[routing['by']]}. Under each expert stands the modality that it is meant for."
    ]
    if purity is not None:
        meaning = f" ({routing['purity_is']})" if routing.get("purity_is") else ""
        parts.append(f"Purity {purity:.3f}{meaning}.")
    if routing["accuracy"] is not None:
        parts.append(f"Accuracy {routing['accuracy']:.3f} (share of the images at the expert meant for them).")
    if routing.get("confidence") is not None:
        parts.append(f"Mean probability of the chosen expert {routing['confidence']:.2f}.")
    return " ".join(parts)
