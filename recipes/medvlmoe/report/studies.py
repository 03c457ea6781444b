"""The report's example studies: image, attention, text, probabilities and experts of a few test studies."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import probability_bars
from recipes.shared.report.html import Markup, join, section, tag
from recipes.shared.report.images import attention_overlay, frame

MOST_BARS = 10
"""Classes shown per study: those present first, then the most probable."""
ATTENTION = (
    " Attention goes from the text's tokens (a learned stand-in where there is no text) to the image's "
    "patches, averaged over heads and tokens, and is "
    "coloured from its lowest to its highest patch, so colours do not compare between studies. It shows "
    "where the fusion looked, not why a class was predicted."
)


def study_section(run: Run) -> Markup:
    """One card per example study.

    Args:
        run: The run; without examples the section says so.
    """
    if run.examples is None:
        return section("Example studies", tag("p", "The run saved no example studies.", class_="muted"))
    count = len(run.examples["images"])
    studies = [{key: array[i] for key, array in run.examples.items()} for i in range(count)]
    maps = any("attention" in study and _is_map(study["attention"]) for study in studies)
    return section(
        "Example studies",
        tag("div", *[_card(study, run.classes) for study in studies], class_="studies"),
        caption="From the test split." + (ATTENTION if maps else ""),
    )


def _card(study: Mapping[str, Any], classes: list[str]) -> Markup:
    name, text, image = str(study["ids"]), str(study["texts"]).strip(), study["images"]
    boxes = json.loads(str(study["boxes"]) or "[]")
    marked = ", ".join(dict.fromkeys(str(box["finding"]) for box in boxes))
    caption = f"Image, boxes: {marked}" if boxes else "Image"
    pictures = [frame(image, caption, alt=f"image of study {name}", boxes=boxes)]
    if "attention" in study and _is_map(study["attention"]):
        overlay, note = attention_overlay(study["attention"]), _peak(study["attention"])
        pictures.append(frame(image, note, alt=f"attention over the image of study {name}", overlay=overlay))
    return tag(
        "article",
        tag("h3", name),
        tag("div", *pictures, class_="pair"),
        tag("blockquote", text) if text else tag("p", "No text came with this study.", class_="aside"),
        _probabilities(study["probs"], study["labels"], classes),
        _experts(study),
        class_="study",
    )


def _is_map(weights: NDArray[np.floating]) -> bool:
    """Whether attention weights say where something is: finite, not all zero, more than one patch."""
    return weights.size > 1 and bool(np.isfinite(weights).all()) and float(weights.sum()) > 0


def _peak(weights: NDArray[np.floating]) -> str:
    return f"Attention, peak {float(weights.max() * weights.size / weights.sum()):.1f} × mean patch"


def _probabilities(probs: NDArray[np.floating], labels: NDArray[np.floating], classes: list[str]) -> Markup:
    order = sorted(range(len(classes)), key=lambda c: (labels[c] != 1, -probs[c]))
    shown = sorted(order[:MOST_BARS])
    bars = [(classes[c], float(probs[c]), None if np.isnan(labels[c]) else float(labels[c])) for c in shown]
    rest = order[MOST_BARS:]
    if not rest:
        return probability_bars(bars)
    highest = max(float(probs[c]) for c in rest)
    more = tag("p", f"{len(rest)} more classes at {highest:.2f} or below.", class_="caption")
    return join([probability_bars(bars), more])


def _experts(study: Mapping[str, Any]) -> Markup:
    if "experts" not in study or np.size(study["experts"]) == 0:
        return Markup("")
    pairs = zip(np.ravel(study["experts"]), np.ravel(study["gates"]), strict=True)
    chips = [tag("li", f"Expert E{int(e)}, gate {float(gate):.2f}") for e, gate in pairs]
    return tag("ul", *chips, class_="chips")
