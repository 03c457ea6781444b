"""What the pointing game gave: hit rates of the models and of each finding, beside the baselines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recipes.medmoe.tables.results import cell_problem, results_of
from recipes.medmoe.tables.sweep import MAPS, Swept
from recipes.shared.report.formats import DASH, decimals, interval_text, signed_interval
from recipes.shared.sweeps.tables import markdown_table

BASELINES = {"fixed": "fixed place", "absent": "absent word", "center": "centre"}
ALL, SEVERAL = "all findings", "images with several findings"
ABOUT = (
    "The pointing game: the share of findings whose word's map is highest inside a box of the finding, with a 95% "
    "interval over patients, and the interval of the difference to a fixed place for each finding, learnt from "
    "training, and to the word of an absent finding. Maps of models without a local branch are cosines of words and "
    "regions that nothing trained them for."
)


def pointing_table(swept: Swept) -> str:
    """Returns a row for each pretraining, and one for the mean over the seeds of a model, as markdown.

    Args:
        swept: The cells.
    """
    if MAPS not in swept.evaluated.sets:
        return "Not played (--no-maps)."
    lines = []
    for model in swept.models:
        games = results_of(swept, MAPS, model.name)
        if model.choice is None and model.preset is None:
            continue
        for seed in swept.evaluated.runs(MAPS, model.name):
            problem = cell_problem(swept, MAPS, model.name, seed)
            if problem:
                lines.append([model.name, str(seed), problem, *[DASH] * 6])
                continue
            for name, part in _parts(games[seed]):
                lines.append([model.name, f"{seed}, {name}", *_figures(part, games[seed])])
        rates = [one["hit_rate"] for one in games.values() if one["hit_rate"] is not None]
        if len(rates) > 1:
            mean = f"{np.mean(rates):.3f} ± {np.std(rates, ddof=1):.3f}"
            lines.append([model.name, f"mean ± sd of {len(rates)} seeds, {ALL}", mean, *[DASH] * 6])
    if not lines:
        return "No cell is finished."
    titles = ["model", "seed", "hit rate", "95%", *BASELINES.values(), "less fixed place, 95%", "less absent word, 95%"]
    return f"{ABOUT}\n\n{markdown_table(titles, lines)}"


def finding_table(swept: Swept) -> str:
    """Returns the hit rate of each finding by model, mean over seeds and each seed's, as markdown.

    Args:
        swept: The cells.
    """
    games = {model.name: results_of(swept, MAPS, model.name) for model in swept.models}
    games = {name: own for name, own in games.items() if own}
    first = next((game for own in games.values() for game in own.values() if game["per_finding"]), None)
    if first is None:
        return "No finding was played."
    order = sorted(first["per_finding"], key=lambda name: -first["per_finding"][name]["reachable"])
    lines = []
    for name in order:
        baseline = first["per_finding"][name]
        cells = []
        for own in games.values():
            rates = [game["per_finding"][name]["hit_rate"] for game in own.values() if name in game["per_finding"]]
            each = " / ".join(f"{rate:.3f}" for rate in rates)
            cells.append(f"{np.mean(rates):.3f} ({each})" if len(rates) > 1 else each or DASH)
        lines.append(
            [
                name,
                *cells,
                decimals(baseline["fixed_baseline"]),
                decimals(baseline["reachable"]),
                str(baseline["rounds"]),
            ]
        )
    return markdown_table(["finding", *games, "fixed place", "reachable", "rounds"], lines)


def pointing_csv(swept: Swept) -> list[dict[str, Any]]:
    """Returns one csv row for each model, seed and finding, and for all of them together."""
    return [
        {"model": model.name, "seed": seed, "finding": name}
        | {
            key: part.get(key)
            for key in ("hit_rate", "fixed_baseline", "absent_baseline", "center_baseline", "reachable")
        }
        | {"rounds": part.get("rounds"), **_ends("hit_rate", part.get("hit_rate_ci95"))}
        | _ends("less_fixed", part.get("above_fixed_ci95"))
        | _ends("less_absent", part.get("above_absent_ci95"))
        for model in swept.models
        for seed, game in results_of(swept, MAPS, model.name).items()
        for name, part in [*_parts(game), *game["per_finding"].items()]
    ]


def _parts(game: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield ALL, game
    several = game.get("several_findings")
    if several is not None:
        yield SEVERAL, several


def _figures(part: Mapping[str, Any], game: Mapping[str, Any]) -> list[str]:
    if part["hit_rate"] is None:
        return [str(part.get("reason") or game.get("reason")), *[DASH] * 6]
    return [
        decimals(part["hit_rate"]),
        interval_text(part["hit_rate_ci95"]),
        *(decimals(part[f"{name}_baseline"]) for name in BASELINES),
        signed_interval(part["above_fixed_ci95"]),
        signed_interval(part["above_absent_ci95"]),
    ]


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
