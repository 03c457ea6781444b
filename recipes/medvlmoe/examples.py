"""The test studies that a report shows, with the model's attention and the experts that it chose.

``examples.npz`` holds some of all kinds, ``errors.npz`` those on which the model is most certain of something wrong.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.images.square import fit_boxes, stack_images
from recipes.data.images.volumes import shown_image
from recipes.data.studies import Study, StudySource
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.errors import choose_errors
from recipes.medvlmoe.inference import Predictions, dataset_of, predict_batches
from recipes.medvlmoe.model import MedVLMoE
from recipes.medvlmoe.sources import texts_of

NUM_EXAMPLES = 8


def choose_examples(labels: NDArray[np.float32], count: int) -> list[int]:
    """Chooses studies that between them show as many classes as possible, then the first of the rest."""
    chosen: list[int] = []
    shown = np.zeros(labels.shape[1], dtype=bool)
    positive = np.nan_to_num(labels) > 0
    while len(chosen) < min(count, len(labels)):
        gain = (positive & ~shown).sum(1).astype(float)
        gain[chosen] = -1
        best = int(gain.argmax())
        if gain[best] <= 0:
            shown[:] = False
            if not positive[[i for i in range(len(labels)) if i not in chosen]].any():
                chosen += [i for i in range(len(labels)) if i not in chosen][: count - len(chosen)]
            continue
        chosen.append(best)
        shown |= positive[best]
    return sorted(chosen)


def write_examples(
    run: Path, model: MedVLMoE, config: Config, source: StudySource, predictions: Predictions, device: torch.device
) -> None:
    """Writes a few test studies with the model's attention and experts into ``examples.npz``."""
    rows = choose_examples(predictions.labels, NUM_EXAMPLES)
    arrays = _shown_studies(rows, model, config, source, predictions, device)
    np.savez_compressed(run / "examples.npz", **arrays)


def write_errors(
    run: Path,
    model: MedVLMoE,
    config: Config,
    source: StudySource,
    predictions: Predictions,
    device: torch.device,
    thresholds: Mapping[str, float],
) -> None:
    """Writes the test studies with the largest errors into ``errors.npz``; without any error there is no such file.

    Args:
        run: Folder of the run.
        model: Its model.
        config: Its settings.
        source: Its data.
        predictions: Of the test split.
        device: Where to compute.
        thresholds: As for :func:`choose_errors`.
    """
    errors = choose_errors(
        predictions.probs, predictions.labels, source.classes, thresholds, task=source.task, count=NUM_EXAMPLES
    )
    (run / "errors.npz").unlink(missing_ok=True)
    if not errors:
        return
    arrays = _shown_studies(list(errors), model, config, source, predictions, device)
    np.savez_compressed(run / "errors.npz", errors=np.array(list(errors.values())), **arrays)


def _shown_studies(
    rows: Sequence[int],
    model: MedVLMoE,
    config: Config,
    source: StudySource,
    predictions: Predictions,
    device: torch.device,
) -> dict[str, Any]:
    """Returns what a report shows of some test studies."""
    split = source.test
    dataset = dataset_of(split, config, model)
    texts = texts_of(split, config.data)
    studies = [split[row] for row in rows]
    batch = make_loader(dataset, config.train, seed=None).collate_fn([dataset[0, row] for row in rows])
    shown = predict_batches(model, [batch], device=device, need_attention=True)
    arrays: dict[str, Any] = {
        "images": stack_images([shown_image(dataset.images.fitted(row)) for row in rows]),
        "probs": predictions.probs[rows],
        "labels": predictions.labels[rows],
        "ids": np.array([study.id for study in studies]),
        "texts": np.array([texts[row] or "" for row in rows]),
        "boxes": np.array([_boxes(study, dataset.spec.size) for study in studies]),
    }
    if shown.attention is not None:
        # The printed form of the cross-attention has one summary of the image: a map of one patch.
        grid = model.image_encoder.grid if shown.attention.shape[1] > 1 else (1, 1)
        arrays["attention"] = shown.attention.reshape(-1, *grid)
    if predictions.gates is not None:
        experts, gates = predictions.main_experts(config.model.top_k)
        arrays["experts"], arrays["gates"] = experts[rows], gates[rows]
    return arrays


def _boxes(study: Study, size: int) -> str:
    """Returns the study's boxes as json, in pixels of its image as fitted to a square of side ``size``."""
    if study.image is None or study.image.ndim == 4:
        return "[]"
    return json.dumps([box._asdict() for box in fit_boxes(study.boxes, study.image.shape, size)])
