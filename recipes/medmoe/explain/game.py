"""The pointing game of a whole split: every study with boxes, every finding that its report names."""

from typing import Any

from tqdm import tqdm

from recipes.data.pairs import PairSplit
from recipes.medmoe.explain.pointing import Pointing, point, summarise
from recipes.medmoe.explain.seen import look
from recipes.medmoe.inference.session import ModelSession

HOW = (
    "A finding's map is the mean of the maps of the words that name it in the report: its whole name where that "
    "stands there, else the words of it that do; case and the plural's s do not count. A finding of whose name the "
    "report holds no word is left out. What counts is the centre of the map's highest cell."
)


def play(
    session: ModelSession, split: PairSplit, *, tolerance: float = 0.0, bootstrap: int = 1000
) -> tuple[dict[str, Any], dict[int, list[str]]]:
    """Plays the pointing game on every study of a split that has boxes.

    Args:
        session: The run.
        split: The studies.
        tolerance: Pixels by which boxes are widened.
        bootstrap: Resamples of patients.

    Returns:
        The figures of :func:`recipes.medmoe.explain.pointing.summarise` with ``studies`` (played), ``left_out``
        (studies with boxes that were not) and ``rounds_left_out``; where nothing could be played, ``None`` for each
        rate and a ``reason``. Then the findings that were played, by study.
    """
    rounds: list[Pointing] = []
    played: dict[int, list[str]] = {}
    with_boxes = left_out = 0
    size = session.batch_size
    for start in tqdm(range(0, len(split), size), desc="pointing game", leave=False):
        rows = range(start, min(start + size, len(split)))
        studies = {row: study for row in rows if (study := split[row]).boxes}
        for row, one in zip(studies, look(session, list(studies.values())), strict=True):
            with_boxes += 1
            for finding, boxes in one.findings().items():
                values = one.finding_map(finding)
                if values is None:
                    left_out += 1
                    continue
                side = one.picture.shape[0]
                rounds.append(point(values, boxes, side, group=one.study.group, tolerance=tolerance))
                played.setdefault(row, []).append(finding)
    counts = {"studies": len(played), "left_out": with_boxes - len(played), "rounds_left_out": left_out}
    if rounds:
        return summarise(rounds, bootstrap=bootstrap) | counts, played
    rates = dict.fromkeys(("hit_rate", "hit_rate_ci95", "center_baseline", "random_baseline", "reachable"))
    reason = "no report holds a word of the name of its findings" if with_boxes else "the data hold no boxes"
    return rates | counts | {"per_finding": {}, "reason": reason}, played


def line(game: dict[str, Any]) -> str:
    """Returns one line on the result of :func:`play`."""
    if game["hit_rate"] is None:
        return f"pointing game: not played, {game['reason']}"
    low, high = game["hit_rate_ci95"] or (float("nan"), float("nan"))
    return (
        f"pointing game: hit rate {game['hit_rate']:.3f} (95% CI {low:.3f} to {high:.3f}; centre "
        f"{game['center_baseline']:.3f}, random {game['random_baseline']:.3f}, at most {game['reachable']:.3f}), "
        f"{game['rounds']} findings of {game['studies']} studies, {game['left_out']} studies left out"
    )
