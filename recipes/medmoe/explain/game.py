"""The pointing game of a whole split: every study with boxes, every finding that its report names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recipes.data.pairs import PairSplit
from recipes.data.studies import Study
from recipes.medmoe.explain.from_training import Learnt
from recipes.medmoe.explain.pointing import Pointing, point, summarise
from recipes.medmoe.explain.renaming import renamed
from recipes.medmoe.explain.seen import MeanMaps, Seen, look
from recipes.medmoe.explain.word_maps import finding_words
from recipes.medmoe.inference.session import ModelSession

HOW = (
    "A finding's map is the mean of the maps of the words that name it in the report: its whole name where that "
    "stands there, else the words of it that do; case and the plural's s do not count. A finding of whose name the "
    "report holds no word is left out. What counts is the centre of the map's highest cell."
)


ABSENT = (
    "The word of an absent finding: the same image and report with the name of another finding of its kind of image in "
    "the place of the finding's own, the mean over all such names; its map should not lie on the finding."
)
FIXED = "A fixed place: the pixel that lies in most boxes of the finding in the training split."


def play(
    session: ModelSession,
    split: PairSplit,
    *,
    learn: Callable[[], Learnt | None] | None = None,
    means: MeanMaps | None = None,
    tolerance: float = 0.0,
    bootstrap: int = 1000,
) -> tuple[dict[str, Any], dict[int, list[str]]]:
    """Plays the pointing game on every study of a split that has boxes.

    Args:
        session: The run.
        split: The studies.
        learn: Returns the boxes of the training split, for the fixed places and the names of absent findings; called
            only where the split has boxes.
        means: Subtracted from the maps; see :func:`recipes.medmoe.explain.seen.look`.
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
    learnt: Learnt | None = None
    size = session.batch_size
    for start in tqdm(range(0, len(split), size), desc="pointing game", leave=False):
        rows = range(start, min(start + size, len(split)))
        studies = {row: study for row in rows if (study := split[row]).boxes}
        if studies and not with_boxes and learn is not None:
            learnt = learn()
        seen = look(session, list(studies.values()), means=means)
        absent = absent_maps(session, seen, learnt, means)
        for row, one in zip(studies, seen, strict=True):
            with_boxes += 1
            findings = one.findings()
            for finding, boxes in findings.items():
                values = one.finding_map(finding)
                if values is None:
                    left_out += 1
                    continue
                options: dict[str, Any] = {"group": one.study.group, "tolerance": tolerance}
                side = one.picture.shape[0]
                others = [point(other, boxes, side, **options).hit for other in absent.get((one.study.id, finding), ())]
                place = None if learnt is None else learnt.places.get(finding)
                rounds.append(
                    point(values, boxes, side, **options)._replace(
                        absent=sum(others) / len(others) if others else math.nan,
                        fixed=math.nan if place is None else point(place, boxes, side, **options).hit,
                        findings=len(findings),
                    )
                )
                played.setdefault(row, []).append(finding)
    counts = {"studies": len(played), "left_out": with_boxes - len(played), "rounds_left_out": left_out}
    if rounds:
        return summarise(rounds, bootstrap=bootstrap) | counts, played
    rates = dict.fromkeys(("hit_rate", "hit_rate_ci95", "center_baseline", "random_baseline", "reachable"))
    reason = "no report holds a word of the name of its findings" if with_boxes else "the data hold no boxes"
    return rates | counts | {"per_finding": {}, "several_findings": None, "reason": reason}, played


def absent_maps(
    session: ModelSession, seen: Sequence[Seen], learnt: Learnt | None, means: MeanMaps | None
) -> dict[tuple[str, str], list[NDArray[np.float32]]]:
    """Computes the maps of the names of absent findings, each in the place of a finding's own name.

    Args:
        session: The run.
        seen: Studies.
        learnt: Names the findings of each kind of image; without it there are no maps.
        means: As for :func:`play`.

    Returns:
        For a study's id and one of its findings, the map of each finding of its kind of image that it does not have.
    """
    if learnt is None:
        return {}
    asked: list[tuple[str, str, str]] = []
    studies: list[Study] = []
    for one in seen:
        present = one.findings()
        others = [name for name in learnt.findings.get(one.study.modality, ()) if name not in present]
        for finding in present:
            places = finding_words(finding, one.words)
            for name in others if places else ():
                text = renamed(str(one.study.text), one.words, places, name)
                if text is not None:
                    asked.append((one.study.id, finding, name))
                    studies.append(replace(one.study, text=text, boxes=()))
    maps: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
    size = session.batch_size
    for start in range(0, len(studies), size):
        part = look(session, studies[start : start + size], means=means)
        for (study, finding, name), other in zip(asked[start : start + size], part, strict=True):
            values = other.finding_map(name)
            if values is not None:
                maps.setdefault((study, finding), []).append(values)
    return maps


def line(game: dict[str, Any]) -> str:
    """Returns the result of :func:`play`, in one line and one more for images with several findings."""
    if game["hit_rate"] is None:
        return f"pointing game: not played, {game['reason']}"
    lines = [
        f"pointing game: hit rate {_rates(game)}, {game['rounds']} findings of {game['studies']} studies, "
        f"{game['left_out']} studies left out"
    ]
    several = game["several_findings"]
    if several is not None:
        drawn = " (drawn for this)" if game.get("several_findings_drawn") else ""
        lines.append(
            f"on images with several findings{drawn}: hit rate {_rates(several)}, {several['rounds']} findings"
        )
    return "\n".join(lines)


def _rates(game: dict[str, Any]) -> str:
    low, high = game["hit_rate_ci95"] or (float("nan"), float("nan"))
    baselines = [f"centre {game['center_baseline']:.3f}", f"random {game['random_baseline']:.3f}"]
    for name, title in (("fixed", "fixed place"), ("absent", "absent word")):
        if game[f"{name}_baseline"] is not None:
            baselines.append(f"{title} {game[f'{name}_baseline']:.3f}")
    return (
        f"{game['hit_rate']:.3f} (95% CI {low:.3f} to {high:.3f}; {', '.join(baselines)}, "
        f"at most {game['reachable']:.3f})"
    )
