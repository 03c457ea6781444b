"""The picture of the pointing game: the hit rate of each finding beside what it is compared with."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

MARKS = {
    "fixed_baseline": ("fixed place", "D"),
    "absent_baseline": ("absent word", "x"),
    "center_baseline": ("centre", "|"),
}
"""Baselines: title and marker."""


def draw_rates(game: dict[str, Any], path: Path) -> Path:
    """Draws the hit rate of each finding with its interval, its baselines, and what the grid of the maps allows.

    Args:
        game: Of :func:`recipes.medmoe.explain.game.play`, with findings.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    rows = {"all findings": game} | dict(sorted(game["per_finding"].items(), key=lambda item: -item[1]["hit_rate"]))
    figure = Figure(figsize=(7.5, 0.34 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        axes.barh(place, values["reachable"], height=0.7, color="#e3e8ee", label="reachable" if place == 0 else None)
        axes.barh(place, values["hit_rate"], height=0.7, color="#0072b2", label="hit rate" if place == 0 else None)
        if values["hit_rate_ci95"]:
            axes.plot(values["hit_rate_ci95"], [place, place], color="black", linewidth=1)
    for name, (title, marker) in MARKS.items():
        known = [(values[name], place) for place, values in enumerate(rows.values()) if values[name] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker, color="#d55e00", markersize=6, label=title, linestyle="none")
    axes.set(xlim=(0, 1.02), xlabel="share of rounds whose maximum lies in a box", yticks=range(len(rows)))
    axes.set_yticklabels([f"{name} ({values['rounds']})" for name, values in rows.items()], fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return path
