"""Predictions as files besides the table: json, and attention maps as pictures and numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.data.images.square import fit_square
from recipes.data.studies import StudySplit
from recipes.medvlmoe.inference import Predictions
from recipes.medvlmoe.trained import TrainedRun
from recipes.shared.report.facts import RESEARCH_NOTE
from recipes.shared.report.images import attention_overlay
from recipes.shared.runs import write_json

PICTURE_SIDE = 448
"""Pixels on a side of a picture, or the encoder's own square if that is larger."""
_LONGEST_NAME = 80


def overlay_names(paths: Sequence[str]) -> list[str]:
    """Returns a file name without ending for each image: its number in the table and what its own name holds of ASCII.

    Args:
        paths: The images.
    """
    width = len(str(len(paths)))
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip(".-")[:_LONGEST_NAME] for path in paths]
    return [f"{number:0{width}}-{name or 'image'}" for number, name in enumerate(names, 1)]


def write_overlays(folder: Path, names: Sequence[str], split: StudySplit, size: int, maps: NDArray[np.float32]) -> None:
    """Writes ``NAME.png``, the attention over the image, and ``NAME.csv``, the map of one number per patch.

    A study without an image gets neither.

    Args:
        folder: Where to; it exists.
        names: Of the files, one per study.
        split: The studies.
        size: Side of the encoder's square, in pixels.
        maps: ``(N, h, w)``, weights that sum to 1 per study.
    """
    for index, (name, attention) in enumerate(zip(names, maps, strict=True)):
        image = split[index].image
        if image is None:
            continue
        overlaid(fit_square(image, size), attention).save(folder / f"{name}.png")
        np.savetxt(folder / f"{name}.csv", attention, fmt="%.6g", delimiter=",")


def overlaid(image: NDArray[np.uint8], attention: NDArray[np.floating]) -> Image.Image:
    """Lays an attention map over a square image.

    Args:
        image: ``(size, size)`` or ``(size, size, 3)``.
        attention: ``(h, w)``, coloured from its lowest to its highest patch.
    """
    side = (max(PICTURE_SIDE, image.shape[0]),) * 2
    below = Image.fromarray(image).convert("RGB").resize(side, Image.Resampling.BICUBIC).convert("RGBA")
    above = Image.fromarray(attention_overlay(attention)).resize(side, Image.Resampling.BICUBIC)
    return Image.alpha_composite(below, above).convert("RGB")


def write_records(
    path: Path,
    trained: TrainedRun,
    images: Sequence[str],
    predictions: Predictions,
    calibrated: NDArray[np.float64] | None,
    maps: NDArray[np.float32] | None,
    overlays: Sequence[str] | None,
) -> None:
    """Writes predictions as json: what they are of, and for each image probabilities, experts and attention.

    Args:
        path: The file.
        trained: The run.
        images: Path of each image.
        predictions: Of the images.
        calibrated: Calibrated probabilities ``(N, C)``, or ``None``.
        maps: Attention ``(N, h, w)``, or ``None``.
        overlays: Names of the pictures, or ``None``.
    """
    each = []
    for row, image in enumerate(images):
        record: dict[str, Any] = {
            "image": image,
            "calibrated": None if calibrated is None else _by_class(trained, calibrated[row]),
            "probabilities": _by_class(trained, predictions.probs[row]),
            "experts": None,
            "attention": None
            if maps is None or not image
            else [[round(float(value), 7) for value in line] for line in maps[row]],
        }
        if predictions.gates is not None:
            experts, gates = predictions.main_experts(trained.config.model.top_k)
            record["experts"] = [
                {"expert": int(expert), "gate": round(float(gate), 6)}
                for expert, gate in zip(experts[row], gates[row], strict=True)
            ]
        if overlays is not None and image:
            record["overlay"] = f"{overlays[row]}.png"
        each.append(record)
    about = {
        "run": str(trained.folder),
        "task": trained.task,
        "classes": list(trained.classes),
        "calibration": trained.why_uncalibrated or "temperatures of the run's validation split",
        "notice": RESEARCH_NOTE,
    }
    write_json(path, about | {"images": each})


def _by_class(trained: TrainedRun, values: NDArray[np.floating]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(trained.classes, values, strict=True)}
