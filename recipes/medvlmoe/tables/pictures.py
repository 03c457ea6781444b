"""The pictures of tables and figures, drawn by Altair into png files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import matplotlib
import vl_convert

from recipes.medvlmoe.tables.printed import COLUMN
from recipes.medvlmoe.tables.rows import Row

COLOURS = ("#30638e", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#5d737e", "#c08552", "#7f7f7f", "#2e4057")
INK = "#333333"
_SCALE = 2
# A machine may have no fonts at all, and texts are then left out: matplotlib brings one.
FONT = "DejaVu Sans"
vl_convert.register_font_directory(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf"))


def draw_intervals(
    path: Path, rows: Sequence[Row], title: str, *, subtitle: str = "", lines: Mapping[str, float | None] | None = None
) -> None:
    """Draws each row's score with its interval over patients and a tick for each seed, one panel per data set.

    Args:
        path: The png file.
        rows: Rows with scores.
        title: Of the picture.
        subtitle: Below it.
        lines: Score at which a line crosses a data set's panel.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    panels = []
    for data_set in dict.fromkeys(row.data_set for row in rows if row.scores and row.scores.mean is not None):
        own = [row for row in rows if row.data_set == data_set and row.scores and row.scores.mean is not None]
        points = [{"row": row.model, "value": row.scores.mean, **_span(row.scores.interval)} for row in own]
        ticks = [
            {"row": row.model, "value": one.value} for row in own for one in row.scores.seeds if one.value is not None
        ]
        order = [name for name in models if any(row.model == name for row in own)]
        line = (lines or {}).get(data_set)
        panels.append(_forest(points, ticks, order, data_set, x_title="macro AUROC", line=line, most=1.0))
    _save(path, alt.vconcat(*panels) if panels else _empty(), title, subtitle=subtitle)


def draw_differences(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws each row's difference with its interval over patients and a tick for each seed, one panel per data set.

    Args:
        path: The png file.
        rows: Rows; those without a difference are left out.
        title: Of the picture.
    """
    panels = []
    compared = [row for row in rows if row.difference is not None and row.difference.value is not None]
    for data_set in dict.fromkeys(row.data_set for row in compared):
        own = [row for row in compared if row.data_set == data_set]
        points = [{"row": r.model, "value": r.difference.value, **_span(r.difference.interval)} for r in own]
        ticks = [
            {"row": row.model, "value": value}
            for row in own
            for value, _, _ in (row.difference.seeds or {}).values()
            if value is not None
        ]
        order = [row.model for row in own]
        panels.append(_forest(points, ticks, order, data_set, x_title="difference of macro AUROC", line=0.0))
    _save(path, alt.vconcat(*panels) if panels else _empty(), title)


def draw_bars(path: Path, rows: Sequence[Row]) -> None:
    """Draws bars of the score of each model, grouped by data set, and the paper's figures as diamonds.

    Args:
        path: The png file.
        rows: Of Table 1.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    values = [
        {
            "set": row.data_set,
            "model": row.model,
            "value": None if row.scores is None else row.scores.mean,
            **_span(row.scores.interval if row.scores else None),
            "paper": float(row.paper.split()[0]) / 100 if row.paper else None,
        }
        for row in rows
    ]
    shown = [one for one in values if one["value"] is not None or one["paper"] is not None]
    if not shown:
        return _save(path, _empty(), "Test macro AUROC")
    sets = list(dict.fromkeys(one["set"] for one in shown))
    colour = alt.Color("model:N", scale=alt.Scale(domain=models, range=list(COLOURS[: len(models)])), title=None)
    x = alt.X("model:N", sort=models, axis=None)
    y_scale = alt.Scale(domain=[0.4, 1.0], clamp=True)
    panels = []
    for name in sets:
        own = alt.Data(values=[one for one in shown if one["set"] == name])
        base = alt.Chart(own).encode(x=x)
        y = alt.Y("value:Q", scale=y_scale, title="macro AUROC" if name == sets[0] else None)
        bars = base.mark_bar().encode(y=y, y2=alt.Y2Datum(0.4), color=colour)
        error = base.mark_rule(color=INK).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
        diamonds = base.mark_point(shape="diamond", size=60, color=INK, filled=False, strokeWidth=1.4).encode(
            y=alt.Y("paper:Q", scale=y_scale)
        )
        panels.append(
            alt.layer(bars, error, diamonds).properties(width=18 * len(models), height=260, title=alt.Title(name))
        )
    _save(path, alt.hconcat(*panels), "Test macro AUROC by data set", subtitle=f"◇ {COLUMN}")


def draw_heat(path: Path, panels: Sequence[Mapping[str, Any]], title: str, subtitle: str) -> None:
    """Draws heat maps of shares, diseases by experts, with the assigned cells framed.

    Args:
        path: The png file.
        panels: Of each map its ``title`` and ``cells``: dicts of ``disease``, ``expert``, ``share`` and ``own``.
        title: Of the picture.
        subtitle: Below it.
    """
    charts = []
    for panel in panels:
        rows = list(dict.fromkeys(cell["disease"] for cell in panel["cells"]))
        columns = list(dict.fromkeys(cell["expert"] for cell in panel["cells"]))
        base = alt.Chart(alt.Data(values=list(panel["cells"]))).encode(
            x=alt.X("expert:N", sort=columns, title=None, axis=alt.Axis(orient="top", labelAngle=0)),
            y=alt.Y("disease:N", sort=rows, title=None),
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
    _save(path, alt.vconcat(*charts) if charts else _empty(), title, subtitle=subtitle)


def _forest(
    points: Sequence[Mapping[str, Any]],
    ticks: Sequence[Mapping[str, Any]],
    order: Sequence[str],
    title: str,
    *,
    x_title: str,
    line: float | None,
    most: float | None = None,
) -> alt.LayerChart:
    """Draws one panel; ``most`` is the largest value that a score can have."""
    y = alt.Y("row:N", sort=list(order), title=None)
    values = [one[key] for one in points for key in ("low", "value", "high")] + [tick["value"] for tick in ticks]
    scale = alt.Scale(
        domain=_domain([value for value in (*values, line) if value is not None], most), zero=False, nice=False
    )
    base = alt.Chart(alt.Data(values=list(points)))
    layers = [
        base.mark_rule(color=COLOURS[0], strokeWidth=1.6).encode(
            x=alt.X("low:Q", scale=scale, title=x_title), x2="high:Q", y=y
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


def _span(interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _empty() -> alt.Chart:
    """Draws that there is nothing yet."""
    text = alt.Chart(alt.Data(values=[{"text": "no cell is finished"}])).mark_text(fontSize=14, color=INK)
    return text.encode(text="text:N").properties(width=300, height=80)


def _save(path: Path, chart: Any, title: str, *, subtitle: str = "") -> None:
    """Writes a png in one step."""
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
