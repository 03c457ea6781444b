"""The skeleton of a report: one HTML file that needs no network and follows the reader's light or dark theme.

A `Markup` is text that is already HTML. Everything else is escaped on its way in, so a class name or a
clinical text cannot become part of the page's code.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


class Markup(str):
    """HTML that may stand in a page as it is."""

    __slots__ = ()


def html(value: object) -> Markup:
    """Turns a value into HTML: a `Markup` stays, anything else is escaped as text.

    Args:
        value: Anything with a text form.
    """
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def join(parts: Iterable[object]) -> Markup:
    """Puts parts one after the other, each escaped unless it is `Markup`.

    Args:
        parts: Pieces of the page.
    """
    return Markup("".join(html(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One HTML element with its children.

    ``tag("td", "a < b", class_="r")`` gives ``<td class="r">a &lt; b</td>``.

    Args:
        name: The element's name.
        *children: What it holds, escaped unless `Markup`.
        **attributes: Its attributes; a trailing underscore is dropped, the others become hyphens.
            ``None`` leaves an attribute out.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{text}>{join(children)}</{name}>")


def section(title: str, *children: object, caption: object = "") -> Markup:
    """A titled block of the page.

    Args:
        title: Its heading.
        *children: What it holds.
        caption: How to read it, one or two sentences.
    """
    intro = tag("p", caption, class_="caption") if caption else ""
    return tag("section", tag("h2", title), intro, *children)


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, align: str, total: bool = False) -> Markup:
    """A table whose first column names the row.

    Args:
        head: Titles of the columns.
        rows: Cells of each row.
        align: One letter per column: ``l`` left, ``r`` right-aligned number, ``w`` wide (a chart).
        total: Whether the first row sums up the others and is set apart.

    Raises:
        ValueError: If a row has another number of cells than ``align`` has letters.
    """
    classes = {"l": None, "r": "r", "w": "wide"}

    def row(cells: Sequence[object], first: str, other: str, class_: str | None = None) -> Markup:
        if len(cells) != len(align):
            raise ValueError(f"every row must have {len(align)} cells, one per letter of align, got {len(cells)}.")
        kinds = [first] + [other] * (len(cells) - 1)
        made = [tag(kind, cell, class_=classes[letter]) for kind, cell, letter in zip(kinds, cells, align, strict=True)]
        return tag("tr", *made, class_=class_)

    body = [row(cells, "th", "td", "total" if total and index == 0 else None) for index, cells in enumerate(rows)]
    inner = tag("table", tag("thead", row(head, "th", "th")), tag("tbody", *body))
    return tag("div", inner, class_="scroll")


def page(title: str, body: Iterable[object]) -> Markup:
    """A whole document with its style inside.

    Args:
        title: Title of the browser's window.
        body: The page's sections.
    """
    return Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', title)}\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"{tag('main', *body)}\n</body>\n</html>\n"
    )
