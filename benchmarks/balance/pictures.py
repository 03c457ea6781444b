"""Pictures of the trainings: figures over the steps, and the load of each expert over the steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.balance.figures import WIDTH
from benchmarks.balance.train import METHODS
from benchmarks.pictures import pyplot, save_picture

Run = dict[str, Any]
STYLES = {
    "neither": ("#c9772b", "-"),
    "loss": ("#8a4fbf", "--"),
    "bias": ("#1f6f8b", "-"),
    "slow-bias": ("#5a8f3c", ":"),
}
"""Colour and dashes of each method."""


def mean_of_layers(name: str) -> Callable[[Run], list[float]]:
    """Returns the function that takes the mean over the layers of a figure."""
    return lambda run: [
        sum(values) / len(values) for values in zip(*(each[name] for each in run["layers"].values()), strict=True)
    ]


PANELS: tuple[tuple[str, Callable[[Run], list[float]]], ...] = (
    ("training loss, nats per byte", lambda run: run["loss"]),
    ("largest load / mean load", lambda run: [1 + each for each in mean_of_layers("max_violation")(run)]),
    ("entropy of the load / ln E", mean_of_layers("load_entropy")),
    ("experts without a token in a step", mean_of_layers("dead_experts")),
)
"""Title and values of each panel."""


def draw_figures(runs: Sequence[Run], path: Path) -> Path:
    """Draws loss and balance over the steps: the mean over the seeds, and the range of them."""
    figure, axes = pyplot().subplots(2, 2, figsize=(9, 5.2), layout="constrained")
    for axis, (title, values_of) in zip(axes.flatten(), PANELS, strict=True):
        for method in _methods(runs):
            rows = [values_of(run) for run in runs if run["method"] == method]
            columns = list(zip(*rows, strict=True))
            steps = [WIDTH * (place + 1) for place in range(len(columns))]
            colour, dashes = STYLES[method]
            means = [sum(column) / len(column) for column in columns]
            axis.plot(steps, means, dashes, color=colour, linewidth=1.4, label=METHODS[method].title)
            axis.fill_between(steps, [*map(min, columns)], [*map(max, columns)], color=colour, alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    return save_picture(figure, path)


def draw_loads(runs: Sequence[Run], path: Path) -> Path:
    """Draws the load of every expert of the last layer over the steps, for the first seed of each method."""
    first = {run["method"]: run for run in reversed(runs)}
    methods = _methods(runs)
    figure, axes = pyplot().subplots(
        1, len(methods), figsize=(2.4 * len(methods) + 0.8, 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    image: Any = None
    for axis, method in zip(axes[0], methods, strict=True):
        layer, loads = list(first[method]["load"].items())[-1]
        totals = [sum(column) for column in zip(*loads, strict=True)]
        equal = [[load * len(loads) / total for load, total in zip(row, totals, strict=True)] for row in loads]
        # Experts in the order of their load, as their numbers mean nothing.
        equal.sort(key=sum, reverse=True)
        extent = (0, WIDTH * len(totals), len(loads), 0)
        image = axis.imshow(
            equal, aspect="auto", extent=extent, cmap="cividis", vmin=0, vmax=4, interpolation="nearest"
        )
        axis.set_title(METHODS[method].title, fontsize=8, loc="left")
        axis.set_xlabel("step")
    axes[0, 0].set_ylabel(f"experts of {layer}, by load", fontsize=8)
    axes[0, 0].set_yticks([])
    figure.colorbar(image, ax=axes, label="load / equal share", extend="max")
    return save_picture(figure, path)


def _methods(runs: Sequence[Run]) -> list[str]:
    return [method for method in METHODS if any(run["method"] == method for run in runs)]
