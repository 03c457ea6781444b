"""Small charts made of HTML and SVG alone: intervals, heat maps, probability bars."""

from collections.abc import Sequence

from recipes.shared.report.html import Markup, join, tag

STRONG = 0.55
"""Opacity of a heat cell from which its text is set in the light ink."""


def interval_bar(
    value: float, interval: Sequence[float] | None, low: float, high: float, *, mark: float | None = 0.5
) -> Markup:
    """A point with its interval on the axis from ``low`` to ``high``.

    Args:
        value: Where the point stands.
        interval: Its two ends, or ``None``.
        low: Left end of the axis.
        high: Right end of the axis.
        mark: Where a dashed line stands, for comparison: chance, or ``None`` for no line.
    """

    def place(x: float) -> str:
        return f"{100 * (min(max(x, low), high) - low) / (high - low):.2f}%"

    marked = mark is not None and low <= mark <= high
    parts = [_rule(place(mark), "var(--muted)", dashed=True)] if marked and mark is not None else []
    if interval is not None:
        left, right = place(interval[0]), place(interval[1])
        parts += [
            Markup(f'<line x1="{left}" x2="{right}" y1="11" y2="11" stroke="var(--s1)" stroke-width="2"/>'),
            _rule(left, "var(--s1)", reach=4),
            _rule(right, "var(--s1)", reach=4),
        ]
    parts.append(Markup(f'<circle cx="{place(value)}" cy="11" r="4.5" fill="var(--s1)"/>'))
    return tag("svg", join(parts), style="overflow:visible", aria_hidden="true")


def heat_map(
    rows: Sequence[tuple[object, Sequence[float] | None]],
    *,
    columns: Sequence[object],
    load: Sequence[float],
    top: float,
    empty: str,
    total: str,
) -> Markup:
    """Shares as annotated cells, with the overall load as columns above and as the last row.

    Args:
        rows: Title and shares of each row; ``None`` for a row without any.
        columns: Titles of the columns.
        load: Overall share of each column.
        top: The share that gets the full colour: the highest one possible.
        empty: What to write in a row without shares.
        total: Title of the row of overall shares.
    """
    highest = max(load)
    bars = [
        tag("td", _percent(share), tag("span", style=f"height:{40 * share / highest if highest else 0:.1f}px"))
        for share in load
    ]
    head = tag("tr", tag("th"), *[tag("th", name) for name in columns])
    body = [tag("tr", tag("th", "Load"), *bars, class_="load")]
    for title, shares in rows:
        cells = (
            [tag("td", empty, class_="none", colspan=len(columns))]
            if shares is None
            else [_cell(share, top) for share in shares]
        )
        body.append(tag("tr", tag("th", title), *cells))
    body.append(tag("tr", tag("th", total), *[_cell(share, top) for share in load], class_="all"))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="heat"), class_="scroll")


def count_map(rows: Sequence[tuple[object, Sequence[int]]], *, columns: Sequence[object], corner: object) -> Markup:
    """Counts as annotated cells, coloured by their share of the row.

    Args:
        rows: Title and counts of each row.
        columns: Titles of the columns.
        corner: What rows and columns are.
    """
    head = tag("tr", tag("th", corner), *[tag("th", name) for name in columns])
    body = []
    for title, counts in rows:
        total = sum(counts)
        cells = [_cell(count / total if total else 0.0, 1.0, f"{count:,}") for count in counts]
        body.append(tag("tr", tag("th", title), *cells))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="heat counts"), class_="scroll")


def probability_bars(rows: Sequence[tuple[str, float, float | None]]) -> Markup:
    """Predicted probabilities with what is true beside them.

    Args:
        rows: Class, probability and label (1, 0 or ``None`` for unknown) of each bar.
    """
    truths = {1.0: "● present", 0.0: "○ absent", None: "? unknown"}
    return labelled_bars([(name, share, truths[label], label == 1) for name, share, label in rows])


def labelled_bars(rows: Sequence[tuple[str, float, str, bool]]) -> Markup:
    """Shares as bars with their number and a word beside them.

    Args:
        rows: Title, share from 0 to 1, word, and whether to single the bar out.
    """
    made = []
    for name, share, word, strong in rows:
        width = f"width:{100 * min(max(share, 0), 1):.1f}%"
        made.append(
            tag(
                "tr",
                tag("th", name),
                tag("td", tag("div", tag("span", style=width)), class_="track"),
                tag("td", f"{share:.2f}", class_="r"),
                tag("td", word, class_="truth"),
                class_="present" if strong else None,
            )
        )
    return tag("table", tag("tbody", *made), class_="probs")


def gauge(share: float, left: object, right: object) -> Markup:
    """A bar filled to a share, with a word at each end.

    Args:
        share: How full, from 0 to 1.
        left: Text at the left.
        right: Text at the right.
    """
    filled = tag("div", tag("span", style=f"width:{100 * min(max(share, 0), 1):.1f}%"))
    return tag("div", tag("span", tag("span", left), tag("span", right), class_="ends"), filled, class_="gauge")


def _rule(x: str, colour: str, *, dashed: bool = False, reach: int = 11) -> Markup:
    dash = ' stroke-dasharray="2 3"' if dashed else ""
    ends = f'x1="{x}" x2="{x}" y1="{11 - reach}" y2="{11 + reach}"'
    return Markup(f'<line {ends} stroke="{colour}" stroke-width="1.5"{dash}/>')


def _cell(share: float, top: float, text: str | None = None) -> Markup:
    alpha = min(share / top, 1.0)
    return tag(
        "td",
        _percent(share) if text is None else text,
        style=f"--a:{alpha:.2f}",
        class_="strong" if alpha > STRONG else None,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
