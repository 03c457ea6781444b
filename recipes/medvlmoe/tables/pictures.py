"""The pictures of tables and figures, drawn by Altair into png files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import altair as alt

from recipes.medvlmoe.tables.printed import COLUMN
from recipes.medvlmoe.tables.rows import Row
from recipes.shared.sweeps.pictures import COLOURS, INK, empty_picture, forest, save_picture, span


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
        points = [{"row": row.model, "value": row.scores.mean, **span(row.scores.interval)} for row in own]
        ticks = [
            {"row": row.model, "value": one.value} for row in own for one in row.scores.seeds if one.value is not None
        ]
        order = [name for name in models if any(row.model == name for row in own)]
        line = (lines or {}).get(data_set)
        panels.append(forest(points, ticks, order, data_set, x_title="macro AUROC", line=line, most=1.0))
    save_picture(path, alt.vconcat(*panels) if panels else empty_picture(), title, subtitle=subtitle)


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
        points = [{"row": r.model, "value": r.difference.value, **span(r.difference.interval)} for r in own]
        ticks = [
            {"row": row.model, "value": value}
            for row in own
            for value, _, _ in (row.difference.seeds or {}).values()
            if value is not None
        ]
        order = [row.model for row in own]
        panels.append(forest(points, ticks, order, data_set, x_title="difference of macro AUROC", line=0.0))
    save_picture(path, alt.vconcat(*panels) if panels else empty_picture(), title)


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
            **span(row.scores.interval if row.scores else None),
            "paper": float(row.paper.split()[0]) / 100 if row.paper else None,
        }
        for row in rows
    ]
    shown = [one for one in values if one["value"] is not None or one["paper"] is not None]
    if not shown:
        return save_picture(path, empty_picture(), "Test macro AUROC")
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
    save_picture(path, alt.hconcat(*panels), "Test macro AUROC by data set", subtitle=f"◇ {COLUMN}")
