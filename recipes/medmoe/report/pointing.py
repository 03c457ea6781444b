"""The report's table of the pointing game."""

from collections.abc import Mapping
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
        above_center: Interval of the hit rate less the centre baseline, with signs; may be empty.
    """

    reason: str = ""
    table: Table | None = None
    words: str = ""
    tolerance: float = 0
    split: str = ""
    studies: int = 0
    left_out: int = 0
    rounds_left_out: int = 0
    above_center: str = ""


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
    signed = (f"{end:+.3f}".replace("-", "−") for end in game.get("above_center_ci95") or ())
    return PointingSection(
        table=Table(COLUMNS, rows, total=True),
        words=game["words"],
        tolerance=game.get("tolerance") or 0,
        split=game["split"],
        studies=game["studies"],
        left_out=game["left_out"],
        rounds_left_out=game["rounds_left_out"],
        above_center=" to ".join(signed),
    )


def _row(name: str, values: Mapping[str, Any]) -> list[Cell]:
    rate, interval, center = values["hit_rate"], values["hit_rate_ci95"], values["center_baseline"]
    return [
        name,
        decimals(rate),
        interval_text(interval),
        Interval(rate, interval, 0.0, 1.0, reference=center),
        decimals(center),
        decimals(values["random_baseline"]),
        decimals(values["reachable"]),
        f"{values['rounds']:,}",
    ]
