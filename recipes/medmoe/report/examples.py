"""The report's example studies: word maps over the image, weights of the scales and the expert (Figure 3)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.medmoe.explain.pictures import outcome, scale_range
from recipes.medmoe.report.run import Run
from recipes.shared.report.bars import Bar
from recipes.shared.report.formats import study_name
from recipes.shared.report.images import Frame, attention_overlay, colour_field, findings, frame


@dataclass(frozen=True)
class Example:
    """An example study.

    Attributes:
        name: Its id, and its modality where it is known.
        text: Its report.
        frames: The image, then the map of each word over it.
        scales: The weights of each scale.
        experts: Probability of each expert.
    """

    name: str
    text: str
    frames: Sequence[Frame]
    scales: Sequence[Frame]
    experts: Sequence[Bar]


@dataclass(frozen=True)
class ExampleSection:
    """Example studies.

    Attributes:
        studies: The studies.
        low: The weight of a scale that is drawn dark.
        high: The weight of a scale that is drawn bright.
        has_experts: Whether the model has experts and scales.
    """

    studies: Sequence[Example]
    low: float
    high: float
    has_experts: bool


def example_section(run: Run) -> ExampleSection | None:
    """Returns one card per example study, or ``None`` for a run without examples.

    Args:
        run: The run.
    """
    if run.examples is None:
        return None
    names = [str(name) for name in run.examples["expert_names"]]
    rows = {key: array for key, array in run.examples.items() if key != "expert_names"}
    has_experts = bool(names)
    span = scale_range(run.examples["scale_weights"]) if has_experts else (0.0, 1.0)
    count = len(run.examples["images"])
    return ExampleSection(
        [_example({key: rows[key][i] for key in rows}, names, span) for i in range(count)], *span, has_experts
    )


def _example(study: Mapping[str, Any], experts: list[str], span: tuple[float, float]) -> Example:
    name, image, modality = study_name(str(study["ids"])), study["images"], str(study["modalities"])
    boxes = json.loads(str(study["boxes"]) or "[]")
    caption = f"Image, box: {findings(boxes)}" if boxes else "Image"
    frames = [frame(image, caption, alt=f"image of study {name}", boxes=boxes)]
    for word, values, hit in zip(map(str, study["words"]), study["word_maps"], study["hits"], strict=True):
        if word:
            own = [box for box in boxes if box["finding"] == word]
            alt, overlay = f"map of {word} in study {name}", attention_overlay(values)
            frames.append(frame(image, f"{word}{outcome(float(hit))}", alt=alt, overlay=overlay, boxes=own))
    scales = [
        frame(colour_field(weights, *span), f"β of scale {scale}, mean {np.mean(weights):.2f}", alt=f"scale {scale}")
        for scale, weights in enumerate(study["scale_weights"], start=1)
    ]
    title = f"{name} · {modality}" if modality else name
    return Example(title, str(study["texts"]).strip(), frames, scales, _experts(study, experts))


def _experts(study: Mapping[str, Any], names: list[str]) -> list[Bar]:
    chosen = int(study["expert"])
    return [
        Bar(f"E{k} {name}", float(p), "● chosen" if k == chosen else "", k == chosen)
        for k, (name, p) in enumerate(zip(names, study["expert_probs"], strict=True))
    ]
