"""The studies that are drawn: chosen from a split or given as files, and kept as pictures and arrays."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import read_image
from recipes.data.images.square import stack_images
from recipes.data.pairs import PairSplit
from recipes.data.studies import Study
from recipes.medmoe.explain.pictures import Explanation, draw
from recipes.medmoe.explain.seen import MeanMaps, explanation, look
from recipes.medmoe.inference.local_scoring import as_run
from recipes.medmoe.inference.session import ModelSession


def choose(split: PairSplit, played: dict[int, list[str]], count: int) -> list[int]:
    """Chooses the first studies of the split that show every modality, and every finding of it, about equally often.

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


def expert_names(session: ModelSession) -> list[str]:
    """Returns names of the ``K`` experts: the modality that each is meant for, or its number; none without experts."""
    if session.route_on == "none":
        return []
    spare = range(len(session.modalities), as_run(session).config.model.num_experts)
    return [*session.modalities, *(f"expert {k}" for k in spare)]


def own_images(
    session: ModelSession,
    files: Sequence[Path],
    text: str,
    modality: str | None,
    *,
    force_dicom: bool,
    means: MeanMaps | None = None,
) -> list[Path]:
    """Draws image files with one report into ``explain/own-*.png``."""
    folder = session.run / "explain"
    force_dicom = force_dicom or session.force_dicom
    folder.mkdir(exist_ok=True)
    pictures = []
    for number, file in enumerate(files):
        image = read_image(file, force_dicom=force_dicom)
        study = Study(file.name, file.name, image, text, np.zeros(0, np.float32), modality=modality)
        example = explanation(look(session, [study], means=means)[0])
        pictures.append(draw(example, expert_names(session), folder / f"own-{number:02d}-{_slug(file.stem)}.png"))
    return pictures


def write_examples(session: ModelSession, examples: Sequence[Explanation]) -> list[Path]:
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
    """Returns studies as arrays without objects: one row per study, words padded with empty ones to the longest.

    Args:
        examples: At least one, all of one run.

    Returns:
        ``images``, ``ids``, ``texts``, ``modalities`` (empty where unknown), ``boxes`` (json), ``words`` ``(n, W)``,
        ``word_maps`` ``(n, W, h, w)``, ``hits`` ``(n, W)``, ``scale_weights`` ``(n, L, h, w)``, ``expert_probs``
        ``(n, K)`` and ``expert`` ``(n,)``.
    """
    most = max(len(example.words) for example in examples)

    def padded(values: NDArray[Any], filling: float) -> NDArray[Any]:
        missing = [(0, most - len(values)), *((0, 0) for _ in values.shape[1:])]
        return np.pad(values, missing, constant_values=filling)

    return {
        "images": stack_images([example.image for example in examples]),
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
