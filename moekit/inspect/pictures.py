"""Pictures of a record with matplotlib, which is imported where one is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.summary import summaries_over_time

_MAP = "cividis"
"""The same to all kinds of colour vision, and in grey."""


def overview_picture(layers: Mapping[str, LayerRecord]) -> Any:
    """Draws the load of all layers, and their balance over time."""
    figure = _figure(11, 2.2 + 0.28 * len(layers))
    load_axes, time_axes = figure.subplots(1, 2)
    most = max((layer.num_experts for layer in layers.values()), default=1)
    loads = torch.full((len(layers), most), torch.nan)
    for row, layer in enumerate(layers.values()):
        load = layer.load.sum(0)
        loads[row, : layer.num_experts] = load / load.mean().clamp(min=1e-9)
    image = load_axes.imshow(loads.tolist(), aspect="auto", cmap=_MAP, vmin=0)
    load_axes.set(title="Load over an equal share", xlabel="expert", yticks=range(len(layers)))
    load_axes.set_yticklabels(list(layers))
    figure.colorbar(image, ax=load_axes)
    ratios = [
        [1 + (each.max_violation or 0.0) for each in summaries_over_time(name, layer)] for name, layer in layers.items()
    ]
    top = max((ratio for row in ratios for ratio in row), default=1.0)
    for place, (layer, row) in enumerate(zip(layers.values(), ratios, strict=True)):
        image = _draw_over_time(time_axes, layer, [row], first=place, vmin=1, vmax=max(top, 2.0))
    time_axes.set(title="Largest load over the mean", xlabel="call", yticks=[], ylim=(len(layers) - 0.5, -0.5))
    figure.colorbar(image, ax=time_axes)
    return figure


def layer_picture(name: str, layer: LayerRecord, label_names: Sequence[str]) -> Any:
    """Draws one layer: load, load over time, co-activation, and labels where there are some."""
    has_labels = bool(layer.by_label[:-1].any())
    figure = _figure(11, 12 if has_labels else 8)
    axes = figure.subplots(3 if has_labels else 2, 2)
    figure.suptitle(name)
    load = layer.load.sum(0)
    bars, time, together, balance = axes.flatten()[:4]
    bars.bar(range(layer.num_experts), (load / load.sum().clamp(min=1)).tolist(), color="#00589c")
    bars.axhline(1 / layer.num_experts, color="#c05a00", linestyle="--", label="equal share")
    bars.set(title="Share of the slots", xlabel="expert")
    bars.legend(fontsize="small")
    shares = layer.load / layer.load.sum(-1, keepdim=True).clamp(min=1)
    image = _draw_over_time(time, layer, cast(list[list[float]], shares.T.tolist()), vmin=0)
    time.set(title="Share of the slots over time", xlabel="call", ylabel="expert")
    time.invert_yaxis()
    figure.colorbar(image, ax=time)
    both = layer.coactivation / layer.coactivation.diagonal().clamp(min=1).unsqueeze(-1)
    image = together.imshow(both.fill_diagonal_(torch.nan).tolist(), cmap=_MAP, vmin=0)
    together.set(title="Tokens of the row's expert that chose the column's", xlabel="expert", ylabel="expert")
    figure.colorbar(image, ax=together)
    over_time = summaries_over_time(name, layer)
    for figure_name, label, style in (
        ("load_entropy", "entropy of the load / ln E", "-"),
        ("prob_entropy", "entropy of the probabilities / ln E", "--"),
        ("confidence", "confidence", ":"),
    ):
        values = [getattr(each, figure_name) for each in over_time]
        shown = [torch.nan if value is None else value for value in values]
        balance.plot(_ends(layer), shown, style, label=label)
    balance.set(title="Balance and certainty", xlabel="call", ylim=(0, 1.05))
    balance.legend(fontsize="small")
    if has_labels:
        _draw_labels(figure, axes[2], layer, label_names)
    return figure


def _draw_labels(figure: Any, axes: Any, layer: LayerRecord, label_names: Sequence[str]) -> None:
    left, right = axes
    rows = layer.by_label[:-1]
    by_row = rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)
    by_column = rows / rows.sum(0, keepdim=True).clamp(min=1e-9)
    for one, shares, title in (
        (left, by_row, "Experts of each label (rows sum to 1)"),
        (right, by_column, "Labels of each expert (columns sum to 1)"),
    ):
        image = one.imshow(shares.tolist(), aspect="auto", cmap=_MAP, vmin=0)
        one.set(title=title, xlabel="expert", yticks=range(len(label_names)))
        one.set_yticklabels(list(label_names))
        figure.colorbar(image, ax=one)


def _draw_over_time(
    axes: Any, layer: LayerRecord, rows: Sequence[Sequence[float]], *, first: int = 0, **limits: float
) -> Any:
    """Draws one row of cells for each row of values by window, which need not be of one width."""
    edges = [first + place - 0.5 for place in range(len(rows) + 1)]
    return axes.pcolormesh([0.0, *_ends(layer)], edges, rows, cmap=_MAP, rasterized=True, **limits)


def _ends(layer: LayerRecord) -> list[float]:
    """Returns the number of calls at the end of each window."""
    return cast(list[float], layer.column("calls").cumsum(0).tolist())


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figure() needs matplotlib, which is not installed: pip install matplotlib. Tables and the HTML page "
            "(write_page) need nothing."
        ) from error
    # Not pyplot, which would keep the figure and choose a window system.
    return Figure(figsize=(width, height), layout="constrained")
