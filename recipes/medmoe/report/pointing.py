"""The report's table of the pointing game."""

from collections.abc import Mapping
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.bars import interval_bar
from recipes.shared.report.html import Markup, section, table, tag

CAPTION = (
    "Does the highest place of a finding's word map lie in a box of it? The dashed line is the centre baseline: how "
    "often the centre of the image does. Random is the share of the image that the boxes cover, reachable the rate of "
    "maps that always choose their best cell: a box between the centres of cells cannot be hit. An interval without "
    "width means that all rounds came out the same, not that the rate is sure."
)


def pointing_section(run: Run) -> Markup:
    """Hit rate of each finding against the centre of the image and a random place.

    Args:
        run: The run; where the game was not played the section says why.
    """
    game, title = run.section("pointing_game"), "Pointing game"
    if not game:
        return section(title, tag("p", "The stage explain was not run.", class_="muted"))
    if game["hit_rate"] is None:
        return section(title, tag("p", f"Not played: {game['reason']}.", class_="muted"))
    ends = tag("span", tag("span", "0"), tag("span", "hit rate"), tag("span", "1"), class_="ends")
    head = ["Finding", "Hit rate", "95% CI", ends, "Centre", "Random", "Reachable", "Played"]
    rows = [_row("All findings", game), *[_row(name, one) for name, one in game["per_finding"].items()]]
    return section(title, table(head, rows, align="lrrwrrrr", total=True), _how(game), caption=CAPTION)


def _row(name: str, values: Mapping[str, Any]) -> list[object]:
    rate, interval, center = values["hit_rate"], values["hit_rate_ci95"], values["center_baseline"]
    return [
        name,
        f"{rate:.3f}",
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–",
        interval_bar(rate, interval, 0.0, 1.0, mark=center),
        f"{center:.3f}",
        f"{values['random_baseline']:.3f}",
        f"{values['reachable']:.3f}",
        f"{values['rounds']:,}",
    ]


def _how(game: Mapping[str, Any]) -> Markup:
    tolerance = game.get("tolerance") or 0
    parts = [
        game["words"],
        f"Boxes are widened by {tolerance:g} pixels." if tolerance else "",
        f"{game['studies']:,} {game['split']} studies played; {game['left_out']:,} with boxes left out, and "
        f"{game['rounds_left_out']:,} findings, as their report does not name them.",
    ]
    above = game.get("above_center_ci95")
    if above:
        ends = " to ".join(f"{end:+.3f}".replace("-", "−") for end in above)
        parts.append(f"Hit rate less centre baseline: 95% CI {ends} over resampled groups.")
    return tag("p", " ".join(part for part in parts if part), class_="caption after")
