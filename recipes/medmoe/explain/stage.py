"""Stage 6: what a run looked at. Draws pictures into ``explain/`` and plays the pointing game."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recipes.data.images.read import read_image
from recipes.data.pairs import PairSplit, PairStream
from recipes.data.studies import Study
from recipes.medmoe.explain.pictures import Explanation, draw
from recipes.medmoe.explain.pointing import Pointing, point, summarise
from recipes.medmoe.explain.seen import explanation, look
from recipes.medmoe.inference.run import Session
from recipes.shared.runs import update_metrics

HOW = (
    "A finding's map is the mean of the maps of the words that name it in the report: its whole name where that "
    "stands there, else the words of it that do; case and the plural's s do not count. A finding of whose name the "
    "report holds no word is left out. What counts is the centre of the map's highest cell."
)


class Explained(NamedTuple):
    """What the stage made.

    Attributes:
        pictures: The PNG files.
        pointing_game: As in ``metrics.json``; ``None`` for images of one's own.
    """

    pictures: list[Path]
    pointing_game: dict[str, Any] | None


def main(
    run: Path,
    *,
    count: int = 8,
    split: Literal["train", "val", "test"] = "test",
    checkpoint: Literal["best", "last"] = "best",
    image: tuple[Path, ...] = (),
    text: str | None = None,
    modality: str | None = None,
    force_dicom: bool = False,
    tolerance: float = 0.0,
    bootstrap: int = 1000,
) -> Explained:
    """Explains a run by studies of its own data, or images of your own.

    Studies of its own go to ``explain/example-*.png`` and ``explain/examples.npz``, the pointing game over all
    studies with boxes to ``metrics.json``; images of your own to ``explain/own-*.png``, and nothing else changes.

    Args:
        run: Folder of the run.
        count: How many studies to draw.
        split: Of which split.
        checkpoint: Which weights.
        image: Image files to explain instead.
        text: The report that belongs to them.
        modality: Kind of these images, for a run that routes on the label.
        force_dicom: Read DICOM files without preamble and file meta group; always if the run does.
        tolerance: Pixels by which the pointing game widens boxes.
        bootstrap: Resamples of patients for the pointing game's intervals.

    Raises:
        ValueError: If the folder is not that of a pretrained run, the split is a stream, ``count`` is below 1, images
            have no text, a text no image, or a file cannot be read.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    if bool(image) != bool(text and text.strip()):
        raise ValueError("image and text belong together: give --image FILES and --text with their report, or neither.")
    session = Session.open(run, checkpoint)
    if image:
        pictures = _own_images(session, image, str(text), modality, force_dicom=force_dicom)
        print("\n".join(f"open {path}" for path in pictures))
        return Explained(pictures, None)
    pairs = getattr(session.source(), split)
    if isinstance(pairs, PairStream):
        raise ValueError(f"split must be one that can be listed, got {split!r}, which is a stream: use val or test.")
    game, played = play(session, pairs, tolerance=tolerance, bootstrap=bootstrap)
    game |= {"split": split, "checkpoint": checkpoint, "tolerance": tolerance, "words": HOW}
    update_metrics(run, pointing_game=game)
    chosen = choose(pairs, played, count)
    size = session.config.train.batch_size
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    seen = [one for batch in batches for one in look(session, [pairs[row] for row in batch])]
    pictures = _write(session, [explanation(one, tolerance) for one in seen])
    print(_line(game))
    print(f"{len(pictures)} pictures: {run / 'explain'}\nnext: python -m recipes.medmoe report {run}")
    return Explained(pictures, game)


def play(
    session: Session, split: PairSplit, *, tolerance: float = 0.0, bootstrap: int = 1000
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
    size = session.config.train.batch_size
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


def choose(split: PairSplit, played: dict[int, list[str]], count: int) -> list[int]:
    """The first studies of the split that show every modality, and every finding of it, about equally often.

    Args:
        split: The studies.
        played: Findings of the studies of the pointing game, which come before all others.
        count: How many.

    Returns:
        Their places in the split, ordered by modality.
    """
    shown: dict[Any, int] = {}
    left = list(range(len(split)))
    chosen: list[int] = []

    def kinds(row: int) -> list[Any]:
        return [(split.modalities[row], finding) for finding in played.get(row, ())]

    def rank(row: int) -> tuple[Any, ...]:
        seldom = min((shown.get(kind, 0) for kind in kinds(row)), default=0)
        return row not in played, shown.get(split.modalities[row], 0), seldom, row

    while left and len(chosen) < count:
        best = min(left, key=rank)
        left.remove(best)
        chosen.append(best)
        for kind in [split.modalities[best], *kinds(best)]:
            shown[kind] = shown.get(kind, 0) + 1
    return sorted(chosen, key=lambda row: (str(split.modalities[row]), row))


def expert_names(session: Session) -> list[str]:
    """Names of the ``K`` experts: the modality that each is meant for, or its number where there is none."""
    spare = range(len(session.modalities), session.config.model.num_experts)
    return [*session.modalities, *(f"expert {k}" for k in spare)]


def _own_images(
    session: Session, files: Sequence[Path], text: str, modality: str | None, *, force_dicom: bool
) -> list[Path]:
    folder = session.run / "explain"
    force_dicom = force_dicom or session.config.data.force_dicom
    folder.mkdir(exist_ok=True)
    made = []
    for number, file in enumerate(files):
        image = read_image(file, force_dicom=force_dicom)
        study = Study(file.name, file.name, image, text, np.zeros(0, np.float32), modality=modality)
        example = explanation(look(session, [study])[0])
        made.append(draw(example, expert_names(session), folder / f"own-{number:02d}-{_slug(file.stem)}.png"))
    return made


def _write(session: Session, examples: Sequence[Explanation]) -> list[Path]:
    """Draws the examples and keeps their arrays for the report; what an earlier call left is removed."""
    folder = session.run / "explain"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("example-*.png"):
        old.unlink()
    names = expert_names(session)
    arrays = example_arrays(examples) | {"expert_names": np.array(names)}
    np.savez_compressed(folder / "examples.npz", **arrays)
    return [
        draw(example, names, folder / f"example-{number:02d}-{_slug(example.id)}.png")
        for number, example in enumerate(examples)
    ]


def example_arrays(examples: Sequence[Explanation]) -> dict[str, NDArray[Any]]:
    """Studies as arrays without objects: one row per study, words padded with empty ones to the longest.

    Args:
        examples: At least one, all of one run.

    Returns:
        ``images``, ``ids``, ``texts``, ``modalities`` (empty where unknown), ``boxes`` (json), ``words`` ``(n, W)``,
        ``word_maps`` ``(n, W, h, w)``, ``hits`` ``(n, W)``, ``scale_weights`` ``(n, L, h, w)``, ``expert_probs``
        ``(n, K)`` and ``expert`` ``(n,)``.
    """
    most = max(len(example.words) for example in examples)
    images = [example.image for example in examples]
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in images]

    def padded(values: NDArray[Any], filling: float) -> NDArray[Any]:
        missing = [(0, most - len(values)), *((0, 0) for _ in values.shape[1:])]
        return np.pad(values, missing, constant_values=filling)

    return {
        "images": np.stack(images),
        "ids": np.array([example.id for example in examples]),
        "texts": np.array([example.text for example in examples]),
        "modalities": np.array([example.modality or "" for example in examples]),
        "boxes": np.array([json.dumps([box._asdict() for box in example.boxes]) for example in examples]),
        "words": np.array([[*example.words, *[""] * (most - len(example.words))] for example in examples]),
        "word_maps": np.stack([padded(example.maps, 0.0) for example in examples]),
        "hits": np.stack([padded(example.hits, np.nan) for example in examples]),
        "scale_weights": np.stack([example.scale_weights for example in examples]),
        "expert_probs": np.stack([example.expert_probs for example in examples]),
        "expert": np.array([example.expert for example in examples]),
    }


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "image"


def _line(game: dict[str, Any]) -> str:
    if game["hit_rate"] is None:
        return f"pointing game: not played, {game['reason']}"
    low, high = game["hit_rate_ci95"] or (float("nan"), float("nan"))
    return (
        f"pointing game: hit rate {game['hit_rate']:.3f} (95% CI {low:.3f} to {high:.3f}; centre "
        f"{game['center_baseline']:.3f}, random {game['random_baseline']:.3f}, at most {game['reachable']:.3f}), "
        f"{game['rounds']} findings of {game['studies']} studies, {game['left_out']} studies left out"
    )
