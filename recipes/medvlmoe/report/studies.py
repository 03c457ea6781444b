"""The report's example studies: image, attention, text, probabilities and experts of a few test studies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.medvlmoe.errors import thresholds_of
from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import Bar, probability_bars
from recipes.shared.report.images import Frame, attention_overlay, findings, frame

MOST_BARS = 10
"""Classes shown per study: those present or wrongly predicted first, then the most probable."""


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
        error: What is wrong with its prediction; empty without any remark.
    """

    name: str
    frames: Sequence[Frame]
    text: str
    bars: Sequence[Bar]
    rest: str
    experts: Sequence[tuple[int, float]]
    error: str = ""

    @property
    def has_attention(self) -> bool:
        """Whether an attention map is shown."""
        return len(self.frames) > 1


def example_studies(run: Run, examples: Mapping[str, NDArray[Any]] | None) -> list[Study]:
    """Returns one card per example study, none without examples.

    Args:
        run: The run.
        examples: Arrays of the studies, one row each.
    """
    if examples is None:
        return []
    single_label = run.metrics["run"].get("task", "multi-label") != "multi-label"
    thresholds = None if single_label else [thresholds_of(run.metrics)[name] for name in run.classes]
    count = len(examples["images"])
    return [_study({key: array[i] for key, array in examples.items()}, run.classes, thresholds) for i in range(count)]


def _study(study: Mapping[str, Any], classes: list[str], thresholds: Sequence[float] | None) -> Study:
    name, image = str(study["ids"]), study["images"]
    boxes = json.loads(str(study["boxes"]) or "[]")
    caption = f"Image, boxes: {findings(boxes)}" if boxes else "Image"
    frames = [frame(image, caption, alt=f"image of study {name}", boxes=boxes)]
    if "attention" in study and _is_map(study["attention"]):
        overlay, note = attention_overlay(study["attention"]), _peak(study["attention"])
        frames.append(frame(image, note, alt=f"attention over the image of study {name}", overlay=overlay))
    probs = study["probs"]
    predicted = np.arange(len(probs)) == probs.argmax() if thresholds is None else probs >= np.asarray(thresholds)
    bars, rest = _probabilities(probs, study["labels"], classes, predicted)
    return Study(name, frames, str(study["texts"]).strip(), bars, rest, _experts(study), str(study.get("errors", "")))


def _is_map(weights: NDArray[np.floating]) -> bool:
    """Returns whether attention weights show a place: finite, not all zero, more than one patch."""
    return weights.size > 1 and bool(np.isfinite(weights).all()) and float(weights.sum()) > 0


def _peak(weights: NDArray[np.floating]) -> str:
    return f"Attention, peak {float(weights.max() * weights.size / weights.sum()):.1f} × mean patch"


def _probabilities(
    probs: NDArray[np.floating], labels: NDArray[np.floating], classes: list[str], predicted: NDArray[np.bool_]
) -> tuple[list[Bar], str]:
    wrong = ~np.isnan(labels) & (predicted != (labels == 1))
    order = sorted(range(len(classes)), key=lambda c: (labels[c] != 1 and not wrong[c], -probs[c]))
    bars = probability_bars(
        (classes[c], float(probs[c]), None if np.isnan(labels[c]) else float(labels[c]), bool(predicted[c]))
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
