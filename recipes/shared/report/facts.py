"""The two ends of a report: a run's name with its headline figures, and how it was made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from recipes.shared.report.html import Markup, section, tag

UNSAID = ("classes", "name", "notes")
"""What a run says of itself that stands elsewhere in the page."""
PHANTOM_NOTE = (
    "Phantom data: images and texts are synthetic. The figures show that the code learns, and say nothing about "
    "patients."
)
RESEARCH_NOTE = "For research only; not a medical device."


class Figure(NamedTuple):
    """A headline figure.

    Attributes:
        title: What it is.
        value: As it is shown.
        detail: What a reader must know beside it; may be empty.
        main: Whether it is the one to look at first.
    """

    title: str
    value: str
    detail: str = ""
    main: bool = False


def header(name: str, model: str, about: Mapping[str, Any], figures: Sequence[Figure], notes: Sequence[str]) -> Markup:
    """A run's name, what it is, its headline figures and what must be known before quoting them.

    Args:
        name: The run's.
        model: The model's.
        about: What ``metrics.json`` says of the run: ``preset``, ``data``, ``task``, ``seed``, as far as known.
        figures: The figures.
        notes: One sentence or two each.
    """
    parts = [
        f"preset {about['preset']}" if about.get("preset") else None,
        f"data: {data_name(about)}",
        str(about["task"]) if about.get("task") else None,
        f"seed {about['seed']}" if about.get("seed") is not None else None,
    ]
    return tag(
        "header",
        tag("h1", name),
        tag("p", f"{model} · ", " · ".join(part for part in parts if part), class_="lead"),
        tag("dl", *[_figure(entry) for entry in figures], class_="headline"),
        tag("ul", *[tag("li", note) for note in notes], class_="notes"),
    )


def facts(about: Mapping[str, Any], config: Mapping[str, Any], more: Sequence[tuple[str, str]] = ()) -> Markup:
    """The section "How it was made": what the run says of itself, and its configuration.

    Args:
        about: What ``metrics.json`` says of the run.
        config: ``config.json``.
        more: Further rows: title and text.
    """
    rows = [(key, plain(key, value)) for key, value in about.items() if key not in UNSAID]
    body = [tag("tr", tag("th", key.replace("_", " ")), tag("td", value)) for key, value in [*rows, *more]]
    return section(
        "How it was made",
        tag("table", tag("tbody", *body), class_="facts"),
        tag(
            "details",
            tag("summary", "Full configuration"),
            tag("pre", json.dumps(config, indent=2, ensure_ascii=False)),
        ),
    )


def data_name(about: Mapping[str, Any]) -> str:
    """Name of the data that a run was trained on, ``"unnamed"`` where it says none."""
    data = about.get("data", "unnamed")
    return str(data.get("name", data)) if isinstance(data, Mapping) else str(data)


def is_phantom(about: Mapping[str, Any]) -> bool:
    """Whether a run was trained on drawn data."""
    return "phantom" in data_name(about).lower()


def plain(key: str, value: Any) -> str:
    """A fact in words: lists with commas, mappings as ``name value``, large parameter counts in millions."""
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {plain(key, content)}" for inner, content in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(key, content) for content in value)
    if key == "parameters" and isinstance(value, int):
        return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:,}"
    return "none" if value is None else str(value)


def duration(seconds: float) -> str:
    """A span of time with the two largest of its units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _figure(entry: Figure) -> Markup:
    small = tag("small", entry.detail) if entry.detail else ""
    return tag("div", tag("dt", entry.title), tag("dd", entry.value, small), class_="main" if entry.main else None)
