"""The report's example studies: word maps over the image, weights of the scales and the expert (Figure 3)."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.medmoe.explain.pictures import outcome, scale_range
from recipes.medmoe.report.run import Run
from recipes.shared.report.bars import labelled_bars
from recipes.shared.report.html import Markup, section, tag
from recipes.shared.report.images import attention_overlay, colour_field, frame

TITLE = "Attention examples"


def example_section(run: Run) -> Markup:
    """One card per example study.

    Args:
        run: The run; without examples the section says so.
    """
    if run.examples is None:
        return section(TITLE, tag("p", "The stage explain was not run.", class_="muted"))
    names = [str(name) for name in run.examples["expert_names"]]
    rows = {key: array for key, array in run.examples.items() if key != "expert_names"}
    low, high = scale_range(run.examples["scale_weights"])
    cards = [
        _card({key: array[i] for key, array in rows.items()}, names, (low, high))
        for i in range(len(run.examples["images"]))
    ]
    caption = (
        "The first studies that show every modality and finding about equally often, not the best ones. A word's map "
        "is the attention of the word over the regions that the chosen expert sees, coloured from its lowest to its "
        "highest cell, so colours do not compare between maps; where a finding is named, hit or miss is the pointing "
        "game's result. Other words are those with the most peaked maps. β is the weight of each scale at each place, "
        f"from fine to coarse, dark at {low:.2f} and bright at {high:.2f} in all studies. Maps show what the "
        "local loss aligned; they are no proof of why a class was predicted."
    )
    return section(TITLE, tag("div", *cards, class_="studies wide"), caption=caption)


def _card(study: Mapping[str, Any], experts: list[str], span: tuple[float, float]) -> Markup:
    name, image = str(study["ids"]), study["images"]
    boxes = json.loads(str(study["boxes"]) or "[]")
    marked = ", ".join(dict.fromkeys(str(box["finding"]) for box in boxes))
    pictures = [frame(image, f"Image, box: {marked}" if boxes else "Image", alt=f"image of study {name}", boxes=boxes)]
    for word, values, hit in zip(study["words"], study["word_maps"], study["hits"], strict=True):
        if not str(word):
            continue
        own = [box for box in boxes if box["finding"] == str(word)]
        caption = f"{word}{outcome(float(hit))}"
        overlay = attention_overlay(values)
        pictures.append(frame(image, caption, alt=f"map of {word} in study {name}", overlay=overlay, boxes=own))
    scales = [
        frame(
            colour_field(weights, *span),
            f"β of scale {scale + 1}, mean {np.mean(weights):.2f}",
            alt=f"scale {scale + 1}",
        )
        for scale, weights in enumerate(study["scale_weights"])
    ]
    kind = str(study["modalities"])
    return tag(
        "article",
        tag("h3", name, f" · {kind}" if kind else ""),
        tag("div", *pictures, class_="strip"),
        tag("blockquote", str(study["texts"]).strip()),
        tag("div", tag("div", *scales, class_="strip small"), _experts(study, experts), class_="decided"),
        class_="study",
    )


def _experts(study: Mapping[str, Any], names: list[str]) -> Markup:
    chosen = int(study["expert"])
    probs = zip(names, study["expert_probs"], strict=True)
    return labelled_bars(
        [
            (f"E{k} {name}", float(p), "● chosen" if k == chosen else "", k == chosen)
            for k, (name, p) in enumerate(probs)
        ]
    )
