"""The report's example studies: image, attention, text, probabilities and experts of a few test studies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import Bar, probability_bars
from recipes.shared.report.images import Frame, attention_overlay, findings, frame

MOST_BARS = 10
"""Classes shown per study: those present first, then the most probable."""


@dataclass(frozen=True)
class Study:
    """An example study.

    Attributes:
        name: Its id.
        frames: Its image, and its attention where there is one.
        text: Its text, may be empty.
        bars: Probabilities with the truth.
        rest: What is known of the classes without a bar; may be empty.
        experts: Number and gate of each of its experts.
    """

    name: str
    frames: Sequence[Frame]
    text: str
    bars: Sequence[Bar]
    rest: str
    experts: Sequence[tuple[int, float]]

    @property
    def has_attention(self) -> bool:
        """Whether an attention map is shown."""
        return len(self.frames) > 1


def example_studies(run: Run) -> list[Study]:
    """Returns one card per example study, none for a run without examples.

    Args:
        run: The run.
    """
    if run.examples is None:
        return []
    count = len(run.examples["images"])
    return [_study({key: array[i] for key, array in run.examples.items()}, run.classes) for i in range(count)]


def _study(study: Mapping[str, Any], classes: list[str]) -> Study:
    name, image = str(study["ids"]), study["images"]
    boxes = json.loads(str(study["boxes"]) or "[]")
    caption = f"Image, boxes: {findings(boxes)}" if boxes else "Image"
    frames = [frame(image, caption, alt=f"image of study {name}", boxes=boxes)]
    if "attention" in study and _is_map(study["attention"]):
        overlay, note = attention_overlay(study["attention"]), _peak(study["attention"])
        frames.append(frame(image, note, alt=f"attention over the image of study {name}", overlay=overlay))
    bars, rest = _probabilities(study["probs"], study["labels"], classes)
    return Study(name, frames, str(study["texts"]).strip(), bars, rest, _experts(study))


def _is_map(weights: NDArray[np.floating]) -> bool:
    """Returns whether attention weights show a place: finite, not all zero, more than one patch."""
    return weights.size > 1 and bool(np.isfinite(weights).all()) and float(weights.sum()) > 0


def _peak(weights: NDArray[np.floating]) -> str:
    return f"Attention, peak {float(weights.max() * weights.size / weights.sum()):.1f} × mean patch"


def _probabilities(
    probs: NDArray[np.floating], labels: NDArray[np.floating], classes: list[str]
) -> tuple[list[Bar], str]:
    order = sorted(range(len(classes)), key=lambda c: (labels[c] != 1, -probs[c]))
    bars = probability_bars(
        (classes[c], float(probs[c]), None if np.isnan(labels[c]) else float(labels[c]))
        for c in sorted(order[:MOST_BARS])
    )
    rest = order[MOST_BARS:]
    if not rest:
        return bars, ""
    return bars, f"{len(rest)} more classes at {max(float(probs[c]) for c in rest):.2f} or below."


def _experts(study: Mapping[str, Any]) -> list[tuple[int, float]]:
    if "experts" not in study:
        return []
    pairs = zip(np.ravel(study["experts"]), np.ravel(study["gates"]), strict=True)
    return [(int(expert), float(gate)) for expert, gate in pairs]
