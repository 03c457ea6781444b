"""The two ends of a report: a run's name with its headline figures, and how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.shared.report.formats import duration, fact

SHOWN_ELSEWHERE = ("classes", "name", "notes")
"""Fields of a run that stand elsewhere in the page."""
PHANTOM_NOTE = (
    "Phantom data: images and texts are synthetic. The figures show that the code learns, and say nothing about "
    "patients."
)
RESEARCH_NOTE = "For research only; not a medical device."


@dataclass(frozen=True)
class Figure:
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


@dataclass(frozen=True)
class Header:
    """The top of a report.

    Attributes:
        name: The run's.
        origin: Model, preset, data, task and seed in one line.
        figures: The headline figures.
        notes: What must be known before quoting them, one sentence or two each.
    """

    name: str
    origin: str
    figures: Sequence[Figure]
    notes: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """How a run was made.

    Attributes:
        rows: Title and text of each fact.
        config: The whole configuration as JSON.
    """

    rows: Sequence[tuple[str, str]]
    config: str


def header(name: str, model: str, about: Mapping[str, Any], figures: Sequence[Figure], notes: Sequence[str]) -> Header:
    """Returns a run's name, what it is, its headline figures and notes.

    Args:
        name: The run's.
        model: The model's.
        about: The section ``run`` of ``metrics.json``: ``preset``, ``data``, ``task``, ``seed``, as far as known.
        figures: The figures.
        notes: One sentence or two each.
    """
    parts = [
        model,
        f"preset {about['preset']}" if about.get("preset") else None,
        f"data: {data_name(about)}",
        str(about["task"]) if about.get("task") else None,
        f"seed {about['seed']}" if about.get("seed") is not None else None,
    ]
    return Header(name, " · ".join(part for part in parts if part), figures, notes)


def facts(
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    time: tuple[str, float | None],
    peak_memory_bytes: int | None,
) -> Facts:
    """Returns what the section "How it was made" shows.

    Args:
        about: The section ``run`` of ``metrics.json``.
        config: ``config.json``.
        time: What was timed, and its seconds; ``None`` where they are unknown.
        peak_memory_bytes: Highest memory use, or ``None``.
    """
    rows = [(key.replace("_", " "), fact(key, value)) for key, value in about.items() if key not in SHOWN_ELSEWHERE]
    if time[1] is not None:
        rows.append((time[0], duration(time[1])))
    if peak_memory_bytes:
        rows.append(("peak memory", f"{peak_memory_bytes / 2**30:.2f} GiB"))
    return Facts(rows, json.dumps(config, indent=2, ensure_ascii=False))


def data_name(about: Mapping[str, Any]) -> str:
    """Returns the name of the data that a run was trained on, ``"unnamed"`` where there is none."""
    data = about.get("data", "unnamed")
    return str(data.get("name", data)) if isinstance(data, Mapping) else str(data)


def is_phantom(about: Mapping[str, Any]) -> bool:
    """Returns whether a run was trained on drawn data."""
    return "phantom" in data_name(about).lower()
