"""The report's zero-shot table and its confusion matrices."""

from collections.abc import Mapping
from typing import Any

from recipes.medmoe.report.run import DECIDES, Run
from recipes.shared.report.bars import count_map, interval_bar
from recipes.shared.report.html import Markup, section, table, tag


def zero_shot_section(run: Run) -> Markup:
    """One row per set: accuracy against chance and macro AUROC, with intervals, and how they were scored.

    Args:
        run: The run; where zero-shot was not run the section says so.
    """
    found = run.section("zero_shot")
    if not found:
        return section("Zero-shot classification", tag("p", "The stage zero-shot was not run.", class_="muted"))
    ends = tag("span", tag("span", "0"), tag("span", "accuracy"), tag("span", "1"), class_="ends")
    head = ["Set", "Accuracy", "95% CI", ends, "Chance", "Macro AUROC", "95% CI", "Studies", "Scoring"]
    rows = [_row(name, summary) for name, summary in found["sets"].items()]
    over = found.get("mean_over") or []
    if len(over) > 1:
        mean = {key: found[key] for key in ("accuracy", "chance", "macro_auroc")}
        rows.insert(0, _row(f"Mean of {len(over)} sets", mean))
    missing = [name for name in found["sets"] if name not in over]
    apart = (
        f" The mean leaves out {', '.join(missing)}, evaluated in another call." if len(over) > 1 and missing else ""
    )
    caption = (
        "Classes are told by prompts alone. The dashed line is chance: one over the number of classes. Intervals are "
        "over resampled groups (patients, where the data name them). Scorings by cosine use the global embedding, "
        "which no expert touches; gloria also uses the regions of the expert that "
        f"{DECIDES[found['route_on']]} chooses.{apart}"
    )
    return section(
        "Zero-shot classification", table(head, rows, align="lrrwrrrrl", total=len(over) > 1), caption=caption
    )


def confusion_section(run: Run) -> Markup:
    """One heat map per set with single labels.

    Args:
        run: The run; nothing without such a set.
    """
    parts: list[Markup] = []
    for name, one in run.zero_shot.items():
        if one["confusion"] is None:
            continue
        classes, matrix = one["confusion"]["classes"], one["confusion"]["matrix"]
        title = f"{name}: {sum(map(sum, matrix)):,} {one['split']} studies, scoring {one['scoring']}"
        cells = count_map(list(zip(classes, matrix, strict=True)), columns=classes, corner="true ↓ predicted →")
        parts.append(tag("div", tag("h3", title), cells))
    if not parts:
        return Markup("")
    caption = "Studies of the class at the left that were taken for the class above; colour is the share of the row."
    return section("Zero-shot confusion", tag("div", *parts, class_="panels large"), caption=caption)


def _row(name: str, summary: Mapping[str, Any]) -> list[object]:
    accuracy, chance, auroc = summary.get("accuracy"), summary.get("chance"), summary.get("macro_auroc")
    interval, studies = summary.get("accuracy_ci95"), summary.get("studies")
    return [
        name,
        _number(accuracy),
        _ends(interval),
        "" if accuracy is None else interval_bar(accuracy, interval, 0.0, 1.0, mark=chance),
        _number(chance),
        _number(auroc),
        _ends(summary.get("macro_auroc_ci95")),
        "" if studies is None else f"{studies:,}",
        summary.get("scoring", ""),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _ends(interval: list[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
