"""The report's table of the pointing game."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.tables import Cell, Column, Interval, Table

COLUMNS = (
    Column("Finding", "text"),
    Column("Hit rate"),
    Column("95% CI"),
    Column("hit rate", "axis"),
    Column("Centre"),
    Column("Fixed place"),
    Column("Absent word"),
    Column("Random"),
    Column("Reachable"),
    Column("Played"),
)


@dataclass(frozen=True)
class PointingSection:
    """Result of the pointing game.

    Attributes:
        reason: Why it was not played; empty where it was, and only then the other attributes hold.
        table: Hit rate of each finding beside its baselines.
        words: How a finding is looked up in a report.
        tolerance: Pixels by which boxes are widened.
        split: The split it was played on.
        studies: Number of studies played.
        left_out: Number of studies with boxes that were left out.
        rounds_left_out: Number of findings that were left out.
        above: Names of baselines, and the interval of the hit rate less each, with signs; may be empty.
        notes: What the baselines are.
    """

    reason: str = ""
    table: Table | None = None
    words: str = ""
    tolerance: float = 0
    split: str = ""
    studies: int = 0
    left_out: int = 0
    rounds_left_out: int = 0
    above: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def pointing_section(run: Run) -> PointingSection | None:
    """Returns the hit rate of each finding beside its baselines, or ``None`` where the stage was not run.

    Args:
        run: The run.
    """
    game = run.section("pointing_game")
    if not game:
        return None
    if game["hit_rate"] is None:
        return PointingSection(reason=str(game["reason"]))
    rows = [_row("All findings", game), *(_row(name, values) for name, values in game["per_finding"].items())]
    above = _differences(game)
    several = game.get("several_findings")
    if several and several["hit_rate"] is not None:
        drawn = ", drawn for this" if game.get("several_findings_drawn") else ""
        rows.append(_row(f"Images with several findings{drawn}", several))
        above += [(f"{name}, on images with several findings", interval) for name, interval in _differences(several)]
    return PointingSection(
        table=Table(COLUMNS, rows, total=True),
        words=game["words"],
        tolerance=game.get("tolerance") or 0,
        split=game["split"],
        studies=game["studies"],
        left_out=game["left_out"],
        rounds_left_out=game["rounds_left_out"],
        above=above,
        notes=[str(game[name]) for name in ("fixed_place", "absent_word") if name in game],
    )


def _differences(game: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the intervals of the hit rate less each baseline."""
    named = {"center": "centre", "fixed": "fixed place", "absent": "absent word"}
    intervals = [(title, game.get(f"above_{name}_ci95")) for name, title in named.items()]
    return [
        (title, " to ".join(f"{end:+.3f}".replace("-", "−") for end in interval))
        for title, interval in intervals
        if interval
    ]


def _optional(value: float | None) -> str:
    return "–" if value is None else decimals(value)


def _row(name: str, values: Mapping[str, Any]) -> list[Cell]:
    rate, interval, center = values["hit_rate"], values["hit_rate_ci95"], values["center_baseline"]
    return [
        name,
        decimals(rate),
        interval_text(interval),
        Interval(rate, interval, 0.0, 1.0, reference=center),
        decimals(center),
        _optional(values.get("fixed_baseline")),
        _optional(values.get("absent_baseline")),
        decimals(values["random_baseline"]),
        decimals(values["reachable"]),
        f"{values['rounds']:,}",
    ]
