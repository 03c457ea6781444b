"""Stage 2: evaluation. Writes ``metrics.json``, ``predictions.csv``, ``examples.npz`` and a card."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recipes.data.studies import StudySource, StudySplit
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.card import CARD, write_card
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.errors import thresholds_of
from recipes.medvlmoe.examples import write_errors, write_examples
from recipes.medvlmoe.inference import Predictions, dataset_of, predict_batches
from recipes.medvlmoe.modality_scores import modalities_over_seeds, modality_scores
from recipes.medvlmoe.model import MedVLMoE, has_experts
from recipes.medvlmoe.sources import build_source
from recipes.shared.epochs import FIRST_EPOCH, training_from_one
from recipes.shared.fingerprint import check_unchanged
from recipes.shared.outputs import check_outputs
from recipes.shared.runs import environment, peak_memory_bytes, read_object, run_device, write_json
from recipes.shared.scores.calibrated import calibrate
from recipes.shared.scores.class_sets import class_set_scores
from recipes.shared.scores.expert_load import load_measures
from recipes.shared.scores.expert_usage import expert_usage
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.operating_points import SPECIFICITIES, check_specificities, operating_points
from recipes.shared.scores.seeds import aggregate_seeds
from recipes.shared.scores.single_label import single_label_scores
from recipes.shared.scores.subgroups import subgroup_scores
from recipes.shared.scores.temperature import Scope, check_scope, scaled_probs

OUTPUTS = ("metrics.json", "predictions.csv", "examples.npz", "errors.npz", CARD)
"""What the stage writes into the run."""


def main(
    run: Path,
    *,
    bootstrap: int = 1000,
    checkpoint: str = "best",
    temperature: Scope = "shared",
    specificities: Sequence[float] = SPECIFICITIES,
) -> dict[str, Any]:
    """Evaluates a run on its validation and test splits; several seeds are aggregated.

    Args:
        run: Folder of a run, or of one run per seed (``seed-N``).
        bootstrap: Resamples of patients for the confidence intervals.
        checkpoint: ``"best"`` or ``"last"``.
        temperature: Whether calibration fits one temperature for all classes or one each (multi-label tasks only).
        specificities: Each gives an operating point: the highest sensitivity at which the specificity is at least that.

    Returns:
        What was written to ``metrics.json``.

    Raises:
        ValueError: If the folder is not that of a trained run, or an argument is none of the allowed.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap (--bootstrap) must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    check_specificities(specificities)
    seeds = seed_runs(run)
    options: dict[str, Any] = {
        "bootstrap": bootstrap,
        "checkpoint": checkpoint,
        "temperature": temperature,
        "specificities": tuple(specificities),
    }
    if not seeds:
        return evaluate_one(run, **options)
    each = [evaluate_one(seed, **options) for seed in seeds]
    warnings = {
        seed.name: one["experts"]["val_and_test"]["warning"]
        for seed, one in zip(seeds, each, strict=True)
        if one["experts"] and one["experts"]["val_and_test"]["warning"]
    }
    metrics = {
        "runs": [seed.name for seed in seeds],
        "test": aggregate_seeds(each),
        "expert_warnings": warnings,
        "modalities": modalities_over_seeds(each),
    }
    write_json(run / "metrics.json", metrics)
    return metrics


def seed_runs(run: Path) -> list[Path]:
    """Returns the folders of the seeds of a run; none if it is a single one."""
    seeds = [path for path in run.glob("seed-*") if path.is_dir() and path.name.removeprefix("seed-").isdecimal()]
    return sorted(seeds, key=lambda path: int(path.name.removeprefix("seed-")))


def evaluate_one(
    run: Path, *, bootstrap: int, checkpoint: str, temperature: Scope, specificities: tuple[float, ...]
) -> dict[str, Any]:
    """Evaluates one run; see :func:`main`."""
    started = time.monotonic()
    check_outputs(run, OUTPUTS)
    model, config, classes, task = load_model(run, checkpoint)
    kept = read_object(run / "training.json", ("epochs", "best_epoch", "seconds", "peak_memory_bytes"))
    training = training_from_one(kept)
    check_scope(temperature, task)
    device = run_device(config.train.accelerator)
    model.to(device)
    source = build_source(config.data, config.model.image_size)
    if source.classes != classes:
        raise ValueError(
            f"{run} was trained on the classes {classes}, but {config.data.data} now has {source.classes}: restore "
            "it, or train another run."
        )
    check_unchanged(run, source.splits(), data=config.data.data)

    predictions: dict[str, Predictions] = {}
    metrics: dict[str, Any] = {"run": _about(run, config, source, model, checkpoint)}
    for name, split in (("val", source.val), ("test", source.test)):
        dataset = dataset_of(split, config, model)
        loader = make_loader(dataset, config.train, seed=None)
        predictions[name] = predict_batches(model, loader, device=device, title=name)
        scores = evaluate_predictions(
            predictions[name].probs, predictions[name].labels, split.groups, classes, task=task, bootstrap=bootstrap
        )
        scores["class_sets"] = class_set_scores(
            predictions[name].probs,
            predictions[name].labels,
            split.groups,
            classes,
            source.class_sets,
            task=task,
            bootstrap=bootstrap,
        )
        scores["single_label"] = single_label_scores(
            predictions[name].probs, predictions[name].labels, split.groups, classes, task=task, bootstrap=bootstrap
        )
        metrics[name] = scores
    val, test = predictions["val"], predictions["test"]
    metrics["calibration"], temperatures = calibrate(
        (val.logits, val.labels),
        (test.logits, test.labels),
        source.test.groups,
        classes,
        task=task,
        scope=temperature,
        bootstrap=bootstrap,
    )
    metrics["operating_points"] = operating_points(
        val.probs,
        val.labels,
        test.probs,
        test.labels,
        source.test.groups,
        classes,
        specificities=specificities,
        bootstrap=bootstrap,
    )
    metrics["specificities"] = list(specificities)
    metrics["subgroups"] = subgroup_scores(
        test.probs,
        test.labels,
        source.test.groups,
        classes,
        getattr(source.test, "attributes", {}),
        bootstrap=bootstrap,
    )
    metrics["modalities"] = modality_scores(
        model, config, source.test, classes, test, task=task, device=device, bootstrap=bootstrap
    )
    metrics["experts"] = _experts(predictions["val"], predictions["test"], classes, config)
    metrics["training"] = FIRST_EPOCH | {
        "epochs": training["epochs"],
        "best_epoch": training["best_epoch"],
        "stopped_early": training["epochs"] < config.train.epochs,
        "seconds": training["seconds"],
        "samples_per_second": training.get("samples_per_second"),
        "data_wait": training.get("data_wait"),
    }
    splits = {"val": source.val, "test": source.test}
    table = pd.concat(
        [
            predictions_table(
                predictions[name],
                splits[name],
                name,
                classes,
                config,
                calibrated=scaled_probs(predictions[name].logits, temperatures.values, task=task),
            )
            for name in predictions
        ]
    )
    table.to_csv(run / "predictions.csv", index=False)
    write_examples(run, model, config, source, predictions["test"], device)
    write_errors(run, model, config, source, predictions["test"], device, thresholds_of(metrics))
    metrics["seconds"] = training["seconds"] + time.monotonic() - started
    metrics["peak_memory_bytes"] = max(training["peak_memory_bytes"], peak_memory_bytes())
    write_json(run / "metrics.json", metrics)
    write_card(run)
    return metrics


def predictions_table(
    predictions: Predictions,
    split: StudySplit,
    name: str,
    classes: Sequence[str],
    config: Config,
    *,
    calibrated: NDArray[np.float64],
) -> pd.DataFrame:
    """Makes one row per study: truth, probabilities as they are and calibrated, the experts chosen and their shares."""
    columns: dict[str, Any] = {
        "id": [split.ids[int(i)] for i in predictions.index],
        "group": [split.groups[int(i)] for i in predictions.index],
        "split": name,
    }
    columns |= {f"label:{c}": predictions.labels[:, k] for k, c in enumerate(classes)}
    columns |= predictions.columns(classes, config.model.top_k)
    if predictions.usage is not None:
        columns |= {f"usage:{e}": share for e, share in enumerate(predictions.usage.T)}
    return pd.DataFrame(columns | {f"calibrated:{c}": calibrated[:, k] for k, c in enumerate(classes)})


def _about(run: Path, config: Config, source: StudySource, model: MedVLMoE, checkpoint: str) -> dict[str, Any]:
    return {
        "name": run.name,
        "preset": config.preset,
        "data": source.name,
        "task": source.task,
        "seed": config.seeds[0],
        "checkpoint": checkpoint,
        "variant": config.model.variant,
        "image_encoder": config.model.image_encoder,
        "text_encoder": config.model.text_encoder if model.text_encoder is not None else None,
        "classes": list(source.classes),
        "studies": {name: len(split) for name, split in source.splits()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "notes": list(source.notes),
        **environment(),
    }


def _experts(val: Predictions, test: Predictions, classes: Sequence[str], config: Config) -> dict[str, Any] | None:
    """Returns the use of the experts on the test split, and the measures of the load on both splits together."""
    if test.usage is None or test.gates is None or test.entropy is None or not has_experts(config.model):
        return None
    top_k = config.model.top_k
    usage = expert_usage(test.usage, test.gates, test.labels, classes, top_k=top_k, entropies=test.entropy)
    assert val.usage is not None
    both = np.concatenate([val.usage, test.usage])
    load = both.mean(0, dtype=np.float64).tolist()
    return usage | {"val_and_test": {"load": load, **load_measures(load, top_k=top_k, decisions=len(both))}}
