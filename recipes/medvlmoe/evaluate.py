"""Stage 2: evaluation. Writes ``metrics.json``, ``predictions.csv`` and ``examples.npz`` into the run."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from recipes.data.studies import StudySource, StudySplit
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import StudyDataset, build_source, make_loader, texts_of
from recipes.medvlmoe.inference import Predictions, predict_batches
from recipes.medvlmoe.model import MedVLMoE, has_experts
from recipes.shared.runs import environment, peak_memory_bytes, read_json, write_json
from recipes.shared.scores.expert_usage import expert_usage
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.seeds import aggregate_seeds

NUM_EXAMPLES = 8


def main(run: Path, *, bootstrap: int = 1000, checkpoint: str = "best") -> dict[str, Any]:
    """Evaluates a run on its validation and test splits; several seeds are aggregated.

    Args:
        run: Folder of a run, or of one run per seed (``seed-N``).
        bootstrap: Resamples of patients for the confidence intervals.
        checkpoint: ``"best"`` or ``"last"``.

    Returns:
        What was written to ``metrics.json``.

    Raises:
        ValueError: If the folder is not that of a trained run.
    """
    seeds = seed_runs(run)
    if not seeds:
        return evaluate_one(run, bootstrap=bootstrap, checkpoint=checkpoint)
    each = [evaluate_one(seed, bootstrap=bootstrap, checkpoint=checkpoint) for seed in seeds]
    metrics = {"runs": [seed.name for seed in seeds], "test": aggregate_seeds(each)}
    write_json(run / "metrics.json", metrics)
    return metrics


def seed_runs(run: Path) -> list[Path]:
    """Folders of the seeds of a run; none if it is a single one."""
    return sorted(run.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))


def evaluate_one(run: Path, *, bootstrap: int, checkpoint: str) -> dict[str, Any]:
    """Evaluates one run; see :func:`main`."""
    started = time.monotonic()
    model, config, classes, task = load_model(run, checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.accelerator != "cpu" else "cpu")
    model.to(device)
    source = build_source(config.data, config.model.image_size)
    if source.classes != classes:
        raise ValueError(f"{run} was trained on the classes {classes}, but its data now has {source.classes}.")

    found: dict[str, Predictions] = {}
    metrics: dict[str, Any] = {"run": _about(run, config, source, model)}
    for name, split in (("val", source.val), ("test", source.test)):
        dataset = dataset_of(split, config, model)
        loader = make_loader(dataset, config.train, seed=None)
        found[name] = predict_batches(model, loader, device=device, title=name)
        scores = evaluate_predictions(
            found[name].probs, found[name].labels, split.groups, classes, task=task, bootstrap=bootstrap
        )
        metrics[name] = scores
    metrics["experts"] = _experts(found["test"], classes, config)
    training = read_json(run / "training.json")
    metrics["training"] = {
        "epochs": training["epochs"],
        "best_epoch": training["best_epoch"],
        "stopped_early": training["epochs"] < config.train.epochs,
        "seconds": training["seconds"],
    }
    splits = {"val": source.val, "test": source.test}
    table = pd.concat([predictions_table(found[name], splits[name], name, classes, config) for name in found])
    table.to_csv(run / "predictions.csv", index=False)
    _write_examples(run, model, config, source, found["test"], device)
    metrics["seconds"] = training["seconds"] + time.monotonic() - started
    metrics["peak_memory_bytes"] = max(training["peak_memory_bytes"], peak_memory_bytes())
    write_json(run / "metrics.json", metrics)
    return metrics


def dataset_of(split: StudySplit, config: Config, model: MedVLMoE, *, whole_notes: bool = False) -> StudyDataset:
    """A split as the model reads it, without augmentation; ``whole_notes`` as in `texts_of`."""
    tokenizer = None if model.text_encoder is None else model.text_encoder.tokenizer
    texts = texts_of(split, config.data, whole_notes=whole_notes)
    return StudyDataset(split, texts, tokenizer, model.image_encoder.spec, text_tokens=config.model.text_tokens)


def predictions_table(
    found: Predictions, split: StudySplit, name: str, classes: Sequence[str], config: Config
) -> pd.DataFrame:
    """One row per study: truth, probabilities, the experts chosen and their gates."""
    columns: dict[str, Any] = {
        "id": [split.ids[int(i)] for i in found.index],
        "group": [split.groups[int(i)] for i in found.index],
        "split": name,
    }
    columns |= {f"label:{c}": found.labels[:, k] for k, c in enumerate(classes)}
    return pd.DataFrame(columns | found.columns(classes, config.model.top_k))


def _about(run: Path, config: Config, source: StudySource, model: MedVLMoE) -> dict[str, Any]:
    return {
        "name": run.name,
        "preset": config.preset,
        "data": source.name,
        "task": source.task,
        "seed": config.seeds[0],
        "variant": config.model.variant,
        "image_encoder": config.model.image_encoder,
        "text_encoder": config.model.text_encoder if model.text_encoder is not None else None,
        "classes": list(source.classes),
        "studies": {name: len(split) for name, split in source.splits()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "notes": list(source.notes),
        **environment(),
    }


def _experts(found: Predictions, classes: Sequence[str], config: Config) -> dict[str, Any] | None:
    if found.usage is None or found.gates is None or found.entropy is None or not has_experts(config.model):
        return None
    return expert_usage(
        found.usage, found.gates, found.labels, classes, top_k=config.model.top_k, entropies=found.entropy
    )


def choose_examples(labels: NDArray[np.float32], count: int) -> list[int]:
    """Studies that between them show as many classes as possible, then the first of the rest."""
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


def _write_examples(
    run: Path, model: MedVLMoE, config: Config, source: StudySource, found: Predictions, device: torch.device
) -> None:
    """Keeps a few test studies with what the model saw and chose, for the report."""
    split = source.test
    rows = choose_examples(found.labels, NUM_EXAMPLES)
    dataset = dataset_of(split, config, model)
    texts = texts_of(split, config.data)
    studies = [split[row] for row in rows]
    batch = make_loader(dataset, config.train, seed=None).collate_fn([dataset[0, row] for row in rows])
    seen = predict_batches(model, [batch], device=device, need_attention=True)
    arrays: dict[str, Any] = {
        "images": _stacked([dataset.image(row) for row in rows]),
        "probs": found.probs[rows],
        "labels": found.labels[rows],
        "ids": np.array([study.id for study in studies]),
        "texts": np.array([texts[row] or "" for row in rows]),
        "boxes": np.array([json.dumps(_boxes(study, dataset.spec.size)) for study in studies]),
    }
    if seen.attention is not None:
        # The printed form of the cross-attention sees one summary of the image: a map of one patch.
        grid = model.image_encoder.grid if seen.attention.shape[1] > 1 else (1, 1)
        arrays["attention"] = seen.attention.reshape(-1, *grid)
    if found.gates is not None:
        experts, gates = found.main_experts(config.model.top_k)
        arrays["experts"], arrays["gates"] = experts[rows], gates[rows]
    np.savez_compressed(run / "examples.npz", **arrays)


def _stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One array of them all; grey ones become RGB where another is in colour."""
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in images]
    return np.stack(images)


def _boxes(study: Any, size: int) -> list[dict[str, Any]]:
    """The study's boxes in pixels of its image as fitted to a square of side ``size``."""
    height, width = study.image.shape[:2]
    scale = size / max(height, width)
    left, top = (size - width * scale) / 2, (size - height * scale) / 2
    return [
        {
            "finding": box.finding,
            "x0": box.x0 * scale + left,
            "y0": box.y0 * scale + top,
            "x1": box.x1 * scale + left,
            "y1": box.y1 * scale + top,
        }
        for box in study.boxes
    ]
