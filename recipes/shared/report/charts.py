"""Line charts as inline SVG whose colours follow the page's theme.

Figures are drawn by matplotlib in stand-in colours that are then replaced by the page's CSS variables.
`matplotlib.figure.Figure` is used directly: pyplot, its backends and its list of open figures stay out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recipes.shared.report.html import Markup, tag

THEME = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#0102f1": "var(--s1)",
    "#0102f2": "var(--s2)",
    "#0102f3": "var(--s3)",
    "#0102f4": "var(--s4)",
}
INK, MUTED, LINE, *SERIES = THEME
DASHES = {"solid": "-", "dashed": (0, (5, 2.5)), "dotted": (0, (1.2, 2))}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it shows.
        x: Horizontal positions.
        y: Values; ``None`` leaves a gap.
        series: Which of the four series colours, from 0.
        dash: ``"solid"``, ``"dashed"`` or ``"dotted"``: lines differ by more than colour.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    series: int = 0
    dash: str = "solid"

    def is_empty(self) -> bool:
        """Whether no value is known."""
        return all(value is None for value in self.y)


def svg(figure: Figure) -> Markup:
    """Turns a figure into SVG for a page: themed, scalable, free of ids of its own and of outside names.

    Args:
        figure: A figure drawn in the colours of `THEME`.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": "report", "path.simplify_threshold": 0.3}
    text = StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", drawn)
    drawn = re.sub(r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', drawn, count=1)
    drawn = re.sub(r'\sid="\w+_\d+"', "", drawn).replace("xlink:href", "href")
    for stand_in, variable in THEME.items():
        drawn = drawn.replace(stand_in, variable)
    return Markup(drawn)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    mark: tuple[float, float, str] | None = None,
    level: tuple[float, str] | None = None,
    size: tuple[float, float] = (3.6, 2.3),
) -> Markup:
    """A small line chart with its title and legend as text of the page.

    Args:
        title: What is shown, with its unit.
        lines: Lines to draw; empty ones are left out.
        x_label: Name of the horizontal axis, whose ticks are whole numbers.
        mark: A point to single out: x, y and what it is.
        level: A horizontal line for comparison: its height and what it is.
        size: Width and height in inches of the drawing.

    Raises:
        ValueError: If no line has a value.
    """
    drawn = [line for line in lines if not line.is_empty()]
    if not drawn:
        raise ValueError(f"lines of the chart {title!r} must hold at least one value, got none.")
    figure, axes = _axes(size)
    for line in drawn:
        y = [float("nan") if value is None else value for value in line.y]
        few = len(y) < 3
        axes.plot(
            line.x, y, color=SERIES[line.series], linestyle=DASHES[line.dash], linewidth=1.8,
            marker="o" if few else None, markersize=4,
        )  # fmt: skip
    legend = [(line.label, line.series, line.dash) for line in drawn] if len(drawn) > 1 else []
    if level is not None:
        axes.axhline(level[0], color=MUTED, linestyle=DASHES["dotted"], linewidth=1.2)
        legend.append((level[1], None, "dotted"))
    if mark is not None:
        axes.plot([mark[0]], [mark[1]], "o", color=SERIES[1], markersize=6.5, zorder=5)
        legend.append((mark[2], 1, "solid"))
    axes.margins(x=0.03, y=0.12)
    axes.set_xlabel(x_label, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    return tag("figure", tag("figcaption", title, _legend(legend)), svg(figure))


def roc_chart(title: str, note: str, false_positives: Sequence[float], true_positives: Sequence[float]) -> Markup:
    """One class' ROC curve with the diagonal of a coin toss.

    Args:
        title: The class.
        note: A line under it.
        false_positives: False-positive rates, ascending, from 0 to 1.
        true_positives: True-positive rates, of the same length.
    """
    figure, axes = _axes((1.75, 1.75))
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=DASHES["dotted"], linewidth=1)
    axes.fill_between(false_positives, true_positives, color=SERIES[0], alpha=0.12, linewidth=0, step="post")
    axes.plot(false_positives, true_positives, color=SERIES[0], linewidth=1.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_xticklabels(["0", "½", "1"])
    axes.set_yticklabels(["0", "½", "1"])
    return tag("figure", tag("figcaption", title, Markup("<br>"), tag("small", note)), svg(figure))


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=MUTED)
    axes.xaxis.label.set_size(9.5)
    return figure, axes


def _legend(entries: Sequence[tuple[str, int | None, str]]) -> Markup:
    if not entries:
        return Markup("")
    items = []
    for label, series, dash in entries:
        colour = "var(--muted)" if series is None else THEME[SERIES[series]]
        swatch = tag("i", class_=dash, style=f"border-color:{colour}")
        items.append(tag("span", swatch, label))
    return tag("span", *items, class_="legend")


def _short(value: float, _position: int | None = None) -> str:
    """A tick's text: ``5e-5`` instead of ``0.00005``, and no tail of zeros."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
