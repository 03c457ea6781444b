"""Line charts as inline SVG, drawn by Altair and turned into SVG by vl-convert, without a browser or a network.

The charts' colours are the page's CSS variables, so that they follow its light or dark theme. Titles and legends are
text of the page.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor, isfinite

import altair as alt
import numpy as np
import vl_convert
from markupsafe import Markup

MUTED, GRID = "var(--muted)", "var(--line)"
SERIES = ("var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)")
DASHES = {"solid": alt.Undefined, "dashed": [8, 4.5], "dotted": [2, 3]}
"""Lengths of dashes and gaps."""
TICK = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5) ? format(datum.value, '~g') : "
    "replace(replace(format(datum.value, '.2~e'), 'e-', 'e−'), 'e+', 'e')"
)
"""A tick's text as a Vega expression: ``5e−5`` instead of ``0.00005``, and no tail of zeros."""
ROC_STEPS = 250
"""A ROC curve keeps one point per cell of a grid with this many steps a side: finer ones cannot be seen."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it shows.
        x: Horizontal positions.
        y: Values; ``None`` and what is not finite leave a gap.
        series: Which of the four series colours, from 0.
        dash: ``"solid"``, ``"dashed"`` or ``"dotted"``: lines differ by more than colour.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    series: int = 0
    dash: str = "solid"

    def is_empty(self) -> bool:
        """Tells whether no value is known."""
        return not any(map(_is_known, self.y))


@dataclass(frozen=True)
class LegendEntry:
    """An entry of the legend: its text, and the colour and kind of its swatch: a dash of `DASHES`, or ``"point"``."""

    label: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: What is shown, with its unit.
        svg: The drawing.
        note: A line under the title; may be empty.
        legend: What its lines are; empty for a single line.
    """

    title: str
    svg: Markup
    note: str = ""
    legend: Sequence[LegendEntry] = ()


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    mark: tuple[float, float, str] | None = None,
    level: tuple[float, str] | None = None,
) -> Chart:
    """Draws a small line chart.

    Args:
        title: What is shown, with its unit.
        lines: Lines to draw; empty ones are left out.
        x_label: Name of the horizontal axis, whose ticks are whole numbers.
        mark: A point to emphasise: x, y and what it is.
        level: A horizontal line for comparison: its height and what it is.

    Raises:
        ValueError: If no line has a value.
    """
    drawn = [line for line in lines if not line.is_empty()]
    if not drawn:
        raise ValueError(f"lines of the chart {title!r} must hold at least one value, got none.")
    x = alt.X(
        "x:Q",
        title=x_label,
        axis=alt.Axis(values=_whole_ticks([position for line in drawn for position in line.x]), format="d"),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    y = alt.Y(
        "y:Q",
        title=None,
        axis=alt.Axis(tickCount=4, labelExpr=TICK),
        scale=alt.Scale(zero=False, nice=4),
    )
    layers = [layer.encode(x, y) for line in drawn for layer in _line(line)]
    legend = [LegendEntry(line.label, SERIES[line.series], line.dash) for line in drawn] if len(drawn) > 1 else []
    if level is not None:
        rule = alt.Chart(_points([0], [level[0]])).mark_rule(color=MUTED, strokeDash=DASHES["dotted"], strokeWidth=1.2)
        layers.append(rule.encode(y=y))
        legend.append(LegendEntry(level[1], MUTED, "dotted"))
    if mark is not None:
        point = alt.Chart(_points([mark[0]], [mark[1]])).mark_point(filled=True, color=SERIES[1], size=60, opacity=1)
        layers.append(point.encode(x, y))
        legend.append(LegendEntry(mark[2], SERIES[1], "point"))
    return Chart(title, _svg(alt.layer(*layers), 300, 194, title), legend=legend)


def roc_chart(title: str, note: str, false_positives: Sequence[float], true_positives: Sequence[float]) -> Chart:
    """Draws one class' ROC curve with the diagonal of a coin toss.

    Args:
        title: The class.
        note: A line under it.
        false_positives: False-positive rates, ascending, from 0 to 1.
        true_positives: True-positive rates, of the same length.
    """
    curve = alt.Chart(_thinned(false_positives, true_positives))
    under = curve.mark_area(color=SERIES[0], opacity=0.12).encode(y2=alt.Y2Datum(0))
    over = curve.mark_line(color=SERIES[0], strokeWidth=2)
    return Chart(title, _unit_square([under, over], f"ROC curve of {title}"), note)


def reliability_chart(title: str, note: str, lines: Sequence[Line]) -> Chart:
    """Draws how often a class was present over how probable it was called, with the diagonal of perfect calibration.

    Args:
        title: The class.
        note: A line under it.
        lines: Share of positives over mean probability, one point per bin.
    """
    layers = [
        layer
        for line in lines
        for layer in (
            alt.Chart(_points(line.x, line.y)).mark_line(
                color=SERIES[line.series], strokeDash=DASHES[line.dash], strokeWidth=1.6
            ),
            alt.Chart(_points(line.x, line.y)).mark_point(filled=True, color=SERIES[line.series], size=14, opacity=1),
        )
    ]
    return Chart(title, _unit_square(layers, f"reliability of {title}"), note)


def precision_recall_chart(
    title: str, note: str, recall: Sequence[float], precision: Sequence[float], prevalence: float
) -> Chart:
    """Draws one class' precision over its recall, as steps, with the precision of chance.

    Args:
        title: The class.
        note: A line under it.
        recall: Ascending, from 0 to 1.
        precision: Of the same length.
        prevalence: The share of positives: the precision of guesses.
    """
    curve = alt.Chart(_thinned(recall, precision))
    under = curve.mark_area(color=SERIES[0], opacity=0.12, interpolate="step-before").encode(y2=alt.Y2Datum(0))
    over = curve.mark_line(color=SERIES[0], strokeWidth=2, interpolate="step-before")
    svg = _unit_square([under, over], f"precision-recall curve of {title}", dotted=(prevalence, prevalence))
    return Chart(title, svg, note)


def _unit_square(layers: Sequence[alt.Chart], description: str, *, dotted: tuple[float, float] = (0.0, 1.0)) -> Markup:
    """Draws layers over a square from 0 to 1 and a dotted line, which has two heights at its ends: the diagonal."""

    def axis(channel: type, field: str):
        ticks = alt.Axis(values=[0, 0.5, 1], labelExpr="datum.value == 0.5 ? '½' : datum.value", title=None)
        return channel(field, axis=ticks, scale=alt.Scale(domain=[-0.02, 1.02], nice=False))

    x, y = axis(alt.X, "x:Q"), axis(alt.Y, "y:Q")
    diagonal = alt.Chart(_points([0, 1], dotted)).mark_line(color=MUTED, strokeDash=DASHES["dotted"], strokeWidth=1.2)
    return _svg(alt.layer(*(layer.encode(x, y) for layer in (diagonal, *layers))), 158, 145, description)


def _whole_ticks(x: Sequence[float]) -> list[int]:
    """Returns at most six whole numbers in the range of x, whose step is 1, 2 or 5 times a power of ten."""
    low, high = ceil(min(x)), floor(max(x))
    steps = (lead * 10**power for power in count() for lead in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step < 6)
    return list(range(-(-low // step) * step, high + 1, step))


def _points(x: Sequence[float], y: Sequence[float | None]) -> alt.Data:
    return alt.Data(values=[{"x": a, "y": b if _is_known(b) else None} for a, b in zip(x, y, strict=True)])


def _is_known(value: float | None) -> bool:
    return value is not None and isfinite(value)


def _thinned(x: Sequence[float], y: Sequence[float]) -> alt.Data:
    cells = np.round(np.stack([x, y], axis=1) * ROC_STEPS) / ROC_STEPS
    changes = np.any(np.diff(cells, axis=0, prepend=-1.0) != 0, axis=1)
    return _points(*cells[changes].T.tolist())


def _line(line: Line) -> list[alt.Chart]:
    """Draws a line, and as points the values that no line reaches: those between gaps, or all of a very short one."""
    colour, known = SERIES[line.series], [False, *map(_is_known, line.y), False]
    alone = [i for i in range(len(line.y)) if len(line.y) < 3 or not (known[i] or known[i + 2])]
    curve = alt.Chart(_points(line.x, line.y)).mark_line(color=colour, strokeDash=DASHES[line.dash], strokeWidth=2.1)
    if not alone:
        return [curve]
    data = _points([line.x[i] for i in alone], [line.y[i] for i in alone])
    return [curve, alt.Chart(data).mark_point(filled=True, color=colour, size=36, opacity=1)]


def _svg(chart: alt.LayerChart, width: int, height: int, description: str) -> Markup:
    """Draws a chart to scale with the page, without names of its own or of anything outside."""
    axis = alt.AxisConfig(
        domainColor=GRID, gridColor=GRID, gridWidth=0.7, ticks=False, labelColor=MUTED, titleColor=MUTED,
        labelFontSize=12, titleFontSize=12, titleFontWeight="normal", titlePadding=4, labelPadding=5,
    )  # fmt: skip
    size = alt.AutoSizeParams(type="fit", contains="padding")  # texts have one size, however wide the tick labels are
    styled = chart.properties(width=width, height=height, autosize=size).configure(
        background="none", aria=False, font="Arial", padding=2, view=alt.ViewConfig(stroke=None), axis=axis
    )
    drawn = vl_convert.vegalite_to_svg(styled.to_dict(validate=False))  # its parts were validated when they were made
    view_box = re.search(r'viewBox="([\d. ]+)"', drawn)
    if view_box is None:
        raise RuntimeError(f"vl-convert drew {description!r} without a viewBox.")
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(view_box.group(1), description)
    return opening + Markup(drawn[drawn.index(">") + 1 :])
