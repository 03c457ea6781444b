"""One picture per explained study: the paper's Figure 3, with the weights of all scales and all experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from recipes.data.studies import Box
from recipes.medmoe.explain.pointing import best_points
from recipes.shared.report.formats import join_once, study_name
from recipes.shared.report.images import attention_overlay

PANEL = 2.3
"""Side of one panel in inches."""
TEXT_WIDTH = 120
"""Longest line of the report's text."""


@dataclass(frozen=True)
class Explanation:
    """A study with its word maps, scale weights and expert. W words, L scales, K experts.

    Attributes:
        id: The study's.
        text: Its report.
        modality: Its modality, or ``None`` where it is unknown.
        image: ``uint8``, letter-boxed: shape ``(S, S)`` or ``(S, S, 3)``.
        boxes: Findings in pixels of ``image``.
        words: The word of each map: a finding's name or a word of the report.
        maps: Shape ``(W, h, w)``.
        hits: Shape ``(W,)``: score of the pointing game of a finding's map, NaN where the word names no finding.
        scale_weights: Shape ``(L, h, w)``, β.
        expert_probs: Shape ``(K,)``.
        expert: Index of the expert that was run.
    """

    id: str
    text: str
    modality: str | None
    image: NDArray[np.uint8]
    boxes: tuple[Box, ...]
    words: tuple[str, ...]
    maps: NDArray[np.float32]
    hits: NDArray[np.float32]
    scale_weights: NDArray[np.float32]
    expert_probs: NDArray[np.float32]
    expert: int


def draw(example: Explanation, experts: Sequence[str], path: Path) -> Path:
    """Draws a study: image and word maps above, weights of the scales and the expert below where there are experts.

    Args:
        example: The study.
        experts: Names of the ``K`` experts; none of a model without.
        path: The PNG to write.

    Returns:
        ``path``.
    """
    scales = len(example.scale_weights)
    columns = max(len(example.words), scales) + 1
    rows = 2 if experts else 1
    figure = Figure(figsize=(PANEL * columns, rows * PANEL + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    title = study_name(example.id) + (f" · {example.modality}" if example.modality else "")
    figure.suptitle(f"{title}\n{shorten(example.text)}", fontsize=9, x=0.01, ha="left")
    _image(grid[0, 0], example, "image" + _names(example.boxes), example.boxes)
    for axes, word, values, hit in zip(grid[0, 1:], example.words, example.maps, example.hits, strict=False):
        _image(axes, example, word + outcome(float(hit)), [box for box in example.boxes if box.finding == word])
        axes.imshow(attention_overlay(values), extent=_extent(example), interpolation="bilinear")
        if not isnan(hit):
            x, y = zip(*best_points(values, example.image.shape[0]), strict=True)
            axes.plot(x, y, "+", color="#00e5ff", markersize=11, markeredgewidth=2)
    if experts:
        _second_row(figure, grid[1], example, experts)
    figure.savefig(path, dpi=110)
    return path


def _second_row(figure: Figure, row: Sequence[Axes], example: Explanation, experts: Sequence[str]) -> None:
    scales = len(example.scale_weights)
    low, high = scale_range(example.scale_weights)
    for scale, (axes, values) in enumerate(zip(row, example.scale_weights, strict=False)):
        drawn = axes.imshow(values, vmin=low, vmax=high, cmap="viridis")
        axes.set_title(f"β of scale {scale + 1}, mean {values.mean():.2f}", fontsize=9)
        if scale == scales - 1:
            figure.colorbar(drawn, ax=list(row[:scales]), fraction=0.03, pad=0.01).ax.tick_params(labelsize=8)
    _experts(row[scales], example, experts)


def outcome(hit: float) -> str:
    """Returns the pointing game's result to write after a finding's name; empty for a NaN."""
    if isnan(hit):
        return ""
    return {1.0: ": hit", 0.0: ": miss"}.get(hit, f": {hit:.0%} hit")


def scale_range(weights: NDArray[np.floating]) -> tuple[float, float]:
    """Returns the range of a colour map of scale weights: their own, widened to 0.05 where it is narrower or empty.

    Args:
        weights: Of any shape.

    Returns:
        ``(low, high)``.
    """
    low, high = (float(weights.min()), float(weights.max())) if weights.size else (0.0, 0.0)
    missing = max(0.0, 0.05 - (high - low)) / 2
    return low - missing, high + missing


def shorten(text: str) -> str:
    """Returns a text on one line, cut after `TEXT_WIDTH` characters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else line[: TEXT_WIDTH - 1] + "…"


def _extent(example: Explanation) -> tuple[float, float, float, float]:
    side = example.image.shape[0]
    return 0, side, side, 0


def _names(boxes: Sequence[Box]) -> str:
    names = join_once(box.finding for box in boxes)
    return f", box: {names}" if names else ""


def _image(axes: Axes, example: Explanation, title: str, boxes: Sequence[Box]) -> None:
    axes.imshow(example.image, cmap="gray", vmin=0, vmax=255, extent=_extent(example))
    for box in boxes:
        for colour, width in (("black", 3.0), ("#ffd24a", 1.5)):
            corner, size = (box.x0, box.y0), (box.x1 - box.x0, box.y1 - box.y0)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width))
        _name_box(axes, box, example.image.shape[0])
    axes.set_title(title, fontsize=9)


def _name_box(axes: Axes, box: Box, side: int) -> None:
    """Writes a box's finding above it, or inside at the upper edge, and leftwards from its right side at the right."""
    right, inside = box.x0 > side / 2, box.y0 < side / 8
    axes.text(
        min(box.x1, side) if right else max(box.x0, 0),
        max(box.y0, 0),
        box.finding,
        ha="right" if right else "left",
        va="top" if inside else "bottom",
        fontsize=7,
        color="#ffd24a",
        bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0},
    )


def _experts(axes: Axes, example: Explanation, experts: Sequence[str]) -> None:
    axes.set_axis_on()
    colours = ["#0072b2" if k == example.expert else "#b3bcc7" for k in range(len(experts))]
    axes.barh(range(len(experts)), example.expert_probs, color=colours)
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], yticks=range(len(experts)))
    axes.set_yticklabels(experts, fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    chosen = example.expert
    axes.set_title(f"expert: {experts[chosen]}, p = {example.expert_probs[chosen]:.2f}", fontsize=9)
