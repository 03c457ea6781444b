"""What explanations take from the training split: where each finding usually lies, and the mean map of each expert."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recipes.data.pairs import PairSplit, PairStream
from recipes.data.studies import Study
from recipes.medmoe.explain.seen import MeanMaps, look
from recipes.medmoe.inference.session import ModelSession


class Learnt(NamedTuple):
    """Boxes of the training split.

    Attributes:
        places: For each finding a map ``(S, S)``: in how many of its boxes a pixel of the fitted square lies.
        findings: The findings that have boxes on images of each modality, sorted.
    """

    places: dict[str, NDArray[np.float32]]
    findings: dict[str | None, list[str]]


def learn_boxes(session: ModelSession, split: PairSplit | PairStream) -> Learnt | None:
    """Learns where findings lie, and on what kind of image; ``None`` where the split is a stream or has no boxes.

    Args:
        session: The model, into whose square the boxes are fitted.
        split: Its training pairs.
    """
    if isinstance(split, PairStream):
        return None
    places: dict[str, NDArray[np.float32]] = {}
    findings: dict[str | None, set[str]] = {}
    pixels = np.zeros(0)
    for study in tqdm((split[row] for row in range(len(split))), total=len(split), desc="boxes", leave=False):
        for box in session.boxes(study):
            if not pixels.size:
                pixels = np.arange(session.fit(study.image).shape[0]) + 0.5
            inside = ((box.y0 <= pixels) & (pixels < box.y1))[:, None] & ((box.x0 <= pixels) & (pixels < box.x1))
            places[box.finding] = places.get(box.finding, np.float32(0)) + inside.astype(np.float32)
            findings.setdefault(study.modality, set()).add(box.finding)
    if not places:
        return None
    return Learnt(places, {modality: sorted(names) for modality, names in findings.items()})


def mean_maps(session: ModelSession, split: PairSplit | PairStream) -> MeanMaps:
    """Computes the mean map of each expert: over all words of the training reports whose images it was chosen for.

    Args:
        session: The run.
        split: Its training pairs.

    Returns:
        ``(h, w)`` by expert; none for an expert without training images.

    Raises:
        ValueError: If the split is a stream.
    """
    if isinstance(split, PairStream):
        raise ValueError(
            "the mean maps are those of the training pairs, which are a stream here: leave out --remove-mean."
        )
    totals: dict[int, NDArray[np.float64]] = {}
    words: dict[int, int] = {}
    for studies in tqdm(_batches(session, split), desc="mean maps", leave=False):
        for one in look(session, studies):
            totals[one.expert] = totals.get(one.expert, 0.0) + one.maps.sum(0, dtype=np.float64)
            words[one.expert] = words.get(one.expert, 0) + len(one.maps)
    return {expert: (total / words[expert]).astype(np.float32) for expert, total in totals.items()}


def _batches(session: ModelSession, split: PairSplit) -> Iterator[list[Study]]:
    size = session.batch_size
    for start in range(0, len(split), size):
        yield [split[row] for row in range(start, min(start + size, len(split)))]
