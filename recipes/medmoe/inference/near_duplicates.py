"""Evaluation images that a run saw in pretraining, as they are or nearly: counted, and left out on request.

A run keeps the prints of its pretraining images in ``prints/``: 1 KiB for each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.pairs import BadSample, PairStream
from recipes.data.pixel_checksum import pixel_checksum
from recipes.data.prints import SIMILARITY, Prints, equal_pairs, print_of, read_prints, twins
from recipes.data.some_rows import some_rows
from recipes.data.studies import StudySplit
from recipes.medmoe.choices import NearDuplicates
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.inference.run import Session
from recipes.medmoe.inference.session import ModelSession
from recipes.shared.fingerprint import FILE as DATA_FILE
from recipes.shared.kept_arrays import keep, read_kept
from recipes.shared.runs import read_object
from recipes.shared.settings import read_settings

FOLDER = "prints"
_PRETRAINING = "pretraining.npz"
_EXAMPLES = 5
"""Pairs that a result names."""


class _Known(NamedTuple):
    """The pretraining images of a run: ids and prints."""

    ids: list[str]
    prints: Prints


def keep_prints(run: Path) -> None:
    """Keeps the prints of a run's pretraining images, unless they are a stream or are kept already.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: If an image cannot be read; the message names it.
    """
    config = read_settings(Config, run)
    train = build_source(config).train
    if not isinstance(train, PairStream):
        _kept(run / FOLDER / _PRETRAINING, _training_data(run), train, config.train.workers, "prints of training")


def set_without_near_duplicates(
    session: ModelSession, one: EvaluationSet, split: str, mode: NearDuplicates
) -> tuple[EvaluationSet, dict[str, Any] | None]:
    """Returns a set with what :func:`without_near_duplicates` leaves of one of its splits, and what it counts.

    Args:
        session: The run.
        one: The set.
        split: Which studies are evaluated; a split that the set lacks is left to what reads it.
        mode: See :func:`without_near_duplicates`.
    """
    if split not in one.splits:
        return one, None
    studies, overlap = without_near_duplicates(session, one.splits[split], f"{one.name}-{split}", mode)
    return replace(one, splits={**one.splits, split: studies}), overlap


def without_near_duplicates(
    session: ModelSession, studies: StudySplit, name: str, mode: NearDuplicates
) -> tuple[StudySplit, dict[str, Any] | None]:
    """Compares the images of an evaluation with those of the pretraining.

    Args:
        session: The run.
        studies: What is evaluated.
        name: Of the studies, for files and errors.
        mode: ``"count"`` compares with the prints that the run keeps; ``"leave-out"`` makes them where it keeps none,
            and leaves out every image that has a near-duplicate; ``"ignore"`` compares nothing.

    Returns:
        The studies that are left, and what a result keeps: ``mode``, ``similarity``, ``pretraining_images``, ``images``
        (compared), ``equal`` and ``nearly_equal`` (images that have a near-duplicate), ``left_out``, ``examples``
        (``id``, ``pretraining_id``, ``similarity``) and ``in_words``; only ``mode``, ``unknown`` (why) and ``in_words``
        where nothing could be compared; ``None`` with ``"ignore"``.

    Raises:
        ValueError: If images are to be left out and the pretraining images are not known, or none would be left; or an
            image cannot be read.
    """
    if mode == "ignore":
        return studies, None
    known, why = _known_images(session, make=mode == "leave-out")
    if known is None:
        if mode == "leave-out":
            raise ValueError(f"near_duplicates (--near-duplicates): no image can be left out, since {why}.")
        return studies, {"mode": mode, "unknown": why, "in_words": f"not counted, since {why}"}
    workers = session.config.train.workers if isinstance(session, Session) else 0
    pixels = pixel_checksum(studies)
    key = None if pixels is None else {"ids": _checksum(studies.ids), "pixels": pixels}
    _, prints = _kept(session.run / FOLDER / f"{name}.npz", key, studies, workers, f"prints of {name}")
    overlap, rows = _compared(known, prints, studies, mode)
    if mode == "leave-out":
        left = [row for row in range(len(studies)) if row not in rows]
        if not left:
            raise ValueError(
                f"near_duplicates (--near-duplicates): all {len(studies)} images of {name} are near-duplicates of "
                "pretraining images, so that none is left to evaluate."
            )
        studies = some_rows(studies, left) if rows else studies
    return studies, overlap


def _known_images(session: ModelSession, *, make: bool) -> tuple[_Known | None, str]:
    """Returns the pretraining images of a run, or ``None`` and why they are not known."""
    if not isinstance(session, Session):
        return None, "the pretraining images of a released model are not known"
    path, key = session.run / FOLDER / _PRETRAINING, _training_data(session.run)
    kept = _read(path, key)
    if kept is None and make:
        train = session.source().train
        kept = _kept(path, key, train, session.config.train.workers, "prints of training")
    return kept, (
        "the run keeps no prints of its pretraining images, as runs of an earlier version and on streams do not "
        "(--near-duplicates leave-out makes them)"
    )


def _training_data(run: Path) -> dict[str, Any]:
    """Returns what the run's ``data.json`` keeps of its pretraining images; of tars their checksum."""
    kept = read_object(run / DATA_FILE).get("train", {}) if (run / DATA_FILE).is_file() else {}
    return {name: kept[name] for name in ("ids", "pixels", "tars") if name in kept}


def _kept(
    path: Path, key: Mapping[str, Any] | None, split: StudySplit | PairStream, workers: int, title: str
) -> _Known:
    """Returns the prints that a file holds, or makes and keeps them; without a key they are made and not kept."""
    kept = None if key is None else _read(path, key)
    if kept is not None:
        return kept
    if isinstance(split, PairStream):
        made = _stream_prints(split, title)
    else:
        made = _Known(list(split.ids), read_prints(split, workers=workers, title=title))
    if key is not None:
        keep(path, _text(key), {"ids": np.array(made.ids), **made.prints._asdict()})
    return made


def _read(path: Path, key: Mapping[str, Any]) -> _Known | None:
    """Returns what a file holds, ``None`` if there is none or it is of other images."""
    kept = read_kept(path, _text(key))
    if kept is None:
        return None
    return _Known([str(name) for name in kept["ids"]], Prints(kept["digests"], kept["thumbnails"]))


def _checksum(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _stream_prints(stream: PairStream, title: str) -> _Known:
    """Reads a stream once; samples that cannot be read were not trained on either."""
    ids, digests, thumbnails = [], [], []
    for sample in tqdm(stream.iterate(), desc=title, leave=False, unit="image"):
        if not isinstance(sample, BadSample):
            digest, thumbnail = print_of(sample.image)
            ids.append(sample.id)
            digests.append(digest)
            thumbnails.append(thumbnail)
    return _Known(ids, Prints(np.stack(digests), np.stack(thumbnails)))


def _compared(
    known: _Known, prints: Prints, studies: StudySplit, mode: NearDuplicates
) -> tuple[dict[str, Any], set[int]]:
    """Counts images that have a near-duplicate, and returns their rows."""
    equal = {row: (other, 1.0) for other, row in equal_pairs(known.prints, prints)}
    near: dict[int, tuple[int, float]] = {}
    for twin in twins(known.prints, prints, SIMILARITY):
        if twin.second not in equal:
            near.setdefault(twin.second, (twin.first, twin.similarity))
    examples = [
        {"id": studies.ids[row], "pretraining_id": known.ids[other], "similarity": similarity}
        for row, (other, similarity) in [*equal.items(), *near.items()][:_EXAMPLES]
    ]
    rows = {*equal, *near}
    overlap: dict[str, Any] = {
        "mode": mode,
        "similarity": SIMILARITY,
        "pretraining_images": len(known.ids),
        "images": len(studies),
        "equal": len(equal),
        "nearly_equal": len(near),
        "left_out": len(rows) if mode == "leave-out" else 0,
        "examples": examples,
    }
    return overlap | {"in_words": _in_words(overlap)}, rows


def _in_words(overlap: Mapping[str, Any]) -> str:
    count = overlap["equal"] + overlap["nearly_equal"]
    if not count:
        return (
            f"none of {overlap['images']} images is equal or nearly equal to one of the "
            f"{overlap['pretraining_images']} pretraining images"
        )
    done = "left out" if overlap["mode"] == "leave-out" else "scored with the others (--near-duplicates leave-out)"
    return (
        f"of {overlap['images']} images {overlap['equal']} are equal and {overlap['nearly_equal']} nearly "
        f"equal to one of the {overlap['pretraining_images']} pretraining images, and {done}"
    )
