"""The picture of a simulation: the most loaded rank over the windows."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import pyplot, save_picture
from benchmarks.placement.simulate import Outcome

STYLES = (("#c9772b", "-"), ("#8a4fbf", "--"), ("#1f6f8b", "-"), ("#5a8f3c", ":"))
"""Colour and dashes, in turn."""


def draw(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Draws the largest load of a rank over the mean, by window."""
    figure, axis = pyplot().subplots(figsize=(7, 2.8), layout="constrained")
    for place, each in enumerate(outcomes):
        colour, dashes = STYLES[place % len(STYLES)]
        windows = range(2, len(each.ratios) + 2)
        axis.plot(windows, each.ratios, dashes, color=colour, linewidth=1.2, label=each.scheme.name)
    axis.set_ylim(bottom=1)
    axis.set_xlabel("window")
    axis.set_title("largest load of a rank / mean", fontsize=8, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(outcomes))
    return save_picture(figure, path)
