"""The page and the picture of `python -m benchmarks experts-help`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pictures import pyplot, save_picture

_HEAD = """# Where experts help

MedVLMoE's preset `tiny` on the [harder phantom](../../../recipes/data/phantom/README.md#harder-edition), with eight
experts of which two work for each study, and with one dense network of equal active FLOPs in their place
(`--variant no-moe`), by the number of circumstances that change what a pattern means. Written by
`python -m benchmarks experts-help`.

"""
_NOTE = """
Test macro AUROC, mean over the seeds. Differences are experts less dense, paired by study and seed: once with an
interval over patients, for the models as they are trained, and once with a t-interval over seeds. Neither includes the
other.
"""
PICTURE = "curve.svg"


def write_page(figures: Mapping[str, Any], path: Path) -> None:
    """Writes the page, and the picture beside it.

    Args:
        figures: ``train`` (options of the cells), ``environment`` and ``points``.
        path: The page's file.
    """
    about, points = figures["environment"], figures["points"]
    compared = [point for point in points if "difference" in point]
    commits = ", ".join(sorted({commit for point in points for commit in point["commits"]})) or "none"
    text = (
        _HEAD
        + f"{about['device']}; torch {about['versions']['torch']}; {about['date']}; code of the cells: {commits}. "
    )
    text += f"Options of `train`: `{' '.join(figures['train'])}`.\n\n"
    text += _table(points) + _NOTE
    if compared:
        text += f"\n![Difference by the number of circumstances]({PICTURE})\n"
        draw_curve(compared, path.with_name(PICTURE))
    text += "\n## What the models read\n\n" + _kinds(points)
    text += "\n## Every seed\n\n" + _seeds(points)
    path.write_text(text)


def verdict(point: Mapping[str, Any]) -> str:
    """Says in words what a point shows, by both of its intervals.

    Args:
        point: One that has a difference.
    """
    sides = []
    for key in ("over_patients", "over_seeds"):
        low, high = point[key] or (-1.0, 1.0)
        sides.append(1 if low > 0 else -1 if high < 0 else 0)
    if sides[0] == sides[1] != 0:
        return "experts higher" if sides[0] > 0 else "experts lower"
    return "undecided"


def draw_curve(points: list[dict[str, Any]], path: Path) -> Path:
    """Draws scores and differences over the number of circumstances.

    Args:
        points: Those that have a difference, by circumstances.
        path: The svg file.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    x = [point["contexts"] for point in points]
    for name, label, colour in (("full", "eight experts", "#1f6f8b"), ("no-moe", "dense, equal FLOPs", "#c9772b")):
        left.plot(
            x, [point["models"][name]["auroc"] for point in points], "-o", color=colour, markersize=4, label=label
        )
        for point in points:
            seeds = [value for value in point["models"][name]["seeds"].values() if value is not None]
            left.plot([point["contexts"]] * len(seeds), seeds, "_", color=colour, markersize=7)
    left.set_title("test macro AUROC; ticks are seeds", fontsize=8, loc="left")
    left.legend(frameon=False)
    for point in points:
        low, high = point["over_patients"] or (point["difference"],) * 2
        right.plot([point["contexts"]] * 2, [low, high], color="#1f6f8b")
        seeds = [value for value in point["by_seed"].values() if value is not None]
        right.plot([point["contexts"]] * len(seeds), seeds, "_", color="#1f6f8b", markersize=7)
    right.plot(x, [point["difference"] for point in points], "o", color="#1f6f8b", markersize=4)
    right.axhline(0, color="#b5b5b5", linewidth=0.8)
    right.set_title("experts less dense; line: 95% over patients", fontsize=8, loc="left")
    for axis in (left, right):
        axis.set_xticks(x)
        axis.set_xlabel("circumstances")
        axis.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, path)


def _table(points: list[dict[str, Any]]) -> str:
    rows = [
        "| circumstances | experts | dense | difference | 95% over patients | t-interval over seeds | |",
        "|---:|---:|---:|---:|---|---|---|",
    ]
    for point in points:
        scores = [_score(point["models"].get(name, {}).get("auroc")) for name in ("full", "no-moe")]
        cells = [str(point["contexts"]), *scores]
        if "difference" in point:
            cells += [f"{point['difference']:+.3f}", _interval(point["over_patients"]), _interval(point["over_seeds"])]
            cells.append(verdict(point))
        else:
            cells += ["–", "–", "–", "not finished"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _kinds(points: list[dict[str, Any]]) -> str:
    kinds = list(
        dict.fromkeys(kind for point in points for model in point["models"].values() for kind in model["kinds"])
    )
    rows = [
        f"| circumstances | model | {' | '.join(kinds)} |",
        f"|---:|---|{'---:|' * len(kinds)}",
    ]
    for point in points:
        for name, model in point["models"].items():
            cells = [str(point["contexts"]), name, *(_score(model["kinds"].get(kind)) for kind in kinds)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _seeds(points: list[dict[str, Any]]) -> str:
    rows = ["| circumstances | seed | experts | dense | difference |", "|---:|---:|---:|---:|---:|"]
    for point in points:
        seeds = list(dict.fromkeys(seed for model in point["models"].values() for seed in model["seeds"]))
        for seed in seeds:
            scores = [_score(point["models"].get(name, {}).get("seeds", {}).get(seed)) for name in ("full", "no-moe")]
            difference = point.get("by_seed", {}).get(seed)
            cells = [str(point["contexts"]), seed, *scores, "–" if difference is None else f"{difference:+.3f}"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
