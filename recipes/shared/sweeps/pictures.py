"""The pictures of sweeps, drawn by Altair into png files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import matplotlib
import vl_convert

COLOURS = ("#30638e", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#5d737e", "#c08552", "#7f7f7f", "#2e4057")
INK = "#333333"
_SCALE = 2
# A machine may have no fonts at all, and texts are then left out: matplotlib brings one.
FONT = "DejaVu Sans"
vl_convert.register_font_directory(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf"))


def draw_heat(path: Path, panels: Sequence[Mapping[str, Any]], title: str, subtitle: str) -> None:
    """Draws heat maps of shares, with some cells framed.

    Args:
        path: The png file.
        panels: Of each map its ``title``, ``top`` (the share of the darkest colour) and ``cells``: dicts of ``row``,
            ``column``, ``share`` and ``own``.
        title: Of the picture.
        subtitle: Below it.
    """
    charts = []
    for panel in panels:
        rows = list(dict.fromkeys(cell["row"] for cell in panel["cells"]))
        columns = list(dict.fromkeys(cell["column"] for cell in panel["cells"]))
        base = alt.Chart(alt.Data(values=list(panel["cells"]))).encode(
            x=alt.X("column:N", sort=columns, title=None, axis=alt.Axis(orient="top", labelAngle=0)),
            y=alt.Y("row:N", sort=rows, title=None),
        )
        cells = base.mark_rect().encode(
            color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, panel["top"]]), legend=None)
        )
        text = base.mark_text(fontSize=10).encode(
            text=alt.Text("share:Q", format=".0%"),
            color=alt.condition(f"datum.share > {0.6 * panel['top']}", alt.value("white"), alt.value(INK)),
        )
        own = base.transform_filter("datum.own").mark_rect(fillOpacity=0, stroke=COLOURS[1], strokeWidth=2.5)
        size = {"width": 38 * len(columns), "height": 24 * len(rows)}
        charts.append(alt.layer(cells, text, own.encode()).properties(title=alt.Title(panel["title"]), **size))
    save_picture(path, alt.vconcat(*charts) if charts else empty_picture(), title, subtitle=subtitle)


def forest(
    points: Sequence[Mapping[str, Any]],
    ticks: Sequence[Mapping[str, Any]],
    order: Sequence[str],
    title: str,
    *,
    x_title: str,
    line: float | None,
    most: float | None = None,
) -> alt.LayerChart:
    """Draws a panel of scores with their intervals.

    Args:
        points: ``row``, ``value``, ``low`` and ``high`` of each row.
        ticks: ``row`` and ``value`` of what its score is a mean of, such as its seeds.
        order: Names of the rows, from above.
        title: Of the panel.
        x_title: Of its axis.
        line: Where a line crosses it.
        most: The largest value that a score can have.
    """
    y = alt.Y("row:N", sort=list(order), title=None)
    values = [one[key] for one in points for key in ("low", "value", "high")] + [tick["value"] for tick in ticks]
    scale = alt.Scale(
        domain=_domain([value for value in (*values, line) if value is not None], most), zero=False, nice=False
    )
    base = alt.Chart(alt.Data(values=list(points)))
    layers = [
        base.mark_rule(color=COLOURS[0], strokeWidth=1.6).encode(
            x=alt.X("low:Q", scale=scale, title=x_title, axis=alt.Axis(tickCount=8)), x2="high:Q", y=y
        ),
        alt.Chart(alt.Data(values=list(ticks)))
        .mark_tick(color=INK, thickness=1.2, size=11)
        .encode(x=alt.X("value:Q", scale=scale), y=y),
        base.mark_point(filled=True, size=70, color=COLOURS[0], opacity=1).encode(x=alt.X("value:Q", scale=scale), y=y),
    ]
    if line is not None:
        across = alt.Chart(alt.Data(values=[{"x": line}])).mark_rule(color="#999999")
        layers.insert(0, across.encode(x=alt.X("x:Q", scale=scale)))
    return alt.layer(*layers).properties(width=420, height=24 * max(len(order), 1), title=alt.Title(title))


def _domain(values: Sequence[float], most: float | None) -> list[float]:
    """Returns the ends of an axis a little beyond the values, but not beyond what they can be."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.01
    return [low - margin, high + margin if most is None else max(high, min(high + margin, most))]


def span(interval: Sequence[float] | None) -> dict[str, float | None]:
    """Returns the ends of an interval as fields of a chart."""
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def empty_picture() -> alt.Chart:
    """Draws that there is nothing yet."""
    text = alt.Chart(alt.Data(values=[{"text": "no cell is finished"}])).mark_text(fontSize=14, color=INK)
    return text.encode(text="text:N").properties(width=300, height=80)


def save_picture(path: Path, chart: Any, title: str, *, subtitle: str = "") -> None:
    """Writes a png in one step.

    Args:
        path: The file.
        chart: What is drawn.
        title: Above it.
        subtitle: Below that.
    """
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start", fontSize=14, subtitleColor=INK)
    axis = alt.AxisConfig(labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=260)
    styled = (
        alt.vconcat(chart)
        .properties(title=heading)
        .configure(
            background="white", padding=12, font=FONT, axis=axis, title=alt.TitleConfig(anchor="start", fontSize=12)
        )
    )
    part = path.with_name(path.name + ".part")
    part.write_bytes(vl_convert.vegalite_to_png(styled.to_dict(), scale=_SCALE))
    part.replace(path)
