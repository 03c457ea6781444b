"""Validation of a trained run on another data set, with nothing fitted there: ``external/NAME`` in the run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from recipes.data.arguments import spelled
from recipes.data.studies import Study, StudySplit, images_present
from recipes.data.verify import verify_images
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import DataConfig
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.evaluate import seed_runs
from recipes.medvlmoe.inference import dataset_of, predict_batches
from recipes.medvlmoe.modalities import check_something_is_read
from recipes.medvlmoe.model import takes_text
from recipes.medvlmoe.report.external import write_external_report, write_external_seeds_report
from recipes.medvlmoe.sources import SPELLING, build_source, texts_of
from recipes.shared.label_maps import map_labels, parse_label_map
from recipes.shared.outputs import check_folder
from recipes.shared.runs import read_object, run_device, write_json
from recipes.shared.scores.calibration import calibration_scores
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.operating_points import SPECIFICITIES, operating_points
from recipes.shared.scores.seeds import aggregate_seeds
from recipes.shared.scores.subgroups import subgroup_scores
from recipes.shared.scores.temperature import scaled_probs


def main(
    run: Path,
    data: DataConfig,
    *,
    name: str | None = None,
    label_map: Sequence[str] = (),
    split: Literal["test", "all"] = "test",
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Evaluates a run on another data set.

    Weights, temperatures and thresholds are the run's: its evaluation chose them on its own validation split. Each
    class with a counterpart is scored against the rest, whatever the two tasks are.

    Args:
        run: Folder of an evaluated run, or of one run per seed (``seed-N``).
        data: The other data set.
        name: Of the results' folder, ``external/NAME`` in the run; by default the set's.
        label_map: Entries of :func:`~recipes.shared.label_maps.parse_label_map`.
        split: The other set's test split, or all of its studies.
        bootstrap: Resamples of patients for the confidence intervals.

    Returns:
        What was written to ``metrics.json`` there, beside ``predictions.csv`` and ``report.html``. Of several seeds
        each has its own in ``seed-N/external/NAME``, and their mean is in ``external/NAME``.

    Raises:
        ValueError: If the run was not evaluated, ``name`` is a path, no class has a counterpart, or the data cannot be
            read.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap (--bootstrap) must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    if name is not None and (Path(name).name != name or not name):
        raise ValueError(f"name (--name) must be the name of a folder, got {name!r}.")
    options: dict[str, Any] = {"name": name, "label_map": label_map, "split": split, "bootstrap": bootstrap}
    seeds = seed_runs(run)
    if not seeds:
        return _evaluate_one(run, data, **options)
    each = [_evaluate_one(seed, data, **options) for seed in seeds]
    first = each[0]
    folder = run / "external" / (name or first["data"])
    check_folder(folder, "--name")
    shared = {key: first[key] for key in ("data", "split", "label_map", "not_mapped", "notes")}
    tests = [{"run": one["run"] | {"data": one["data"]}, "test": one["scores"]} for one in each]
    metrics = {"runs": [seed.name for seed in seeds], **shared, "scores": aggregate_seeds(tests)}
    write_json(folder / "metrics.json", metrics)
    write_external_seeds_report(folder, [seed / "external" / folder.name for seed in seeds])
    return metrics


def _evaluate_one(
    run: Path,
    data: DataConfig,
    *,
    name: str | None,
    label_map: Sequence[str],
    split: Literal["test", "all"],
    bootstrap: int,
) -> dict[str, Any]:
    """Evaluates one run; see :func:`main`."""
    evaluated = read_object(run / "metrics.json", ("run", "calibration"))
    checkpoint = evaluated["run"].get("checkpoint", "best")
    model, config, classes, task = load_model(run, checkpoint)
    source = build_source(data, config.model.image_size)
    if data.verify_images:
        with spelled(SPELLING):
            verify_images(source.splits(), data.data)
    mapping = parse_label_map(label_map, classes, source.classes)
    folder = run / "external" / (name or source.name)
    check_folder(folder, "--name")

    device = run_device(config.train.accelerator)
    model.to(device)
    config = replace(config, data=data)
    columns = [classes.index(known) for known in mapping]
    splits = [
        (part_name, _Relabelled(part, source.classes, mapping, classes))
        for part_name, part in source.splits()
        if split == "all" or part_name == "test"
    ]
    texts = {part_name: texts_of(part, data) for part_name, part in splits}
    check_something_is_read(data.data, splits, texts, reads_text=takes_text(model))
    each = [
        predict_batches(
            model, make_loader(dataset_of(part, config, model), config.train, seed=None), device=device, title=part_name
        )
        for part_name, part in splits
    ]
    probs = np.concatenate([one.probs for one in each])[:, columns]
    temperatures = np.array([evaluated["calibration"]["temperature"][known] for known in classes])
    logits = np.concatenate([one.logits for one in each])
    calibrated = scaled_probs(logits, temperatures, task=task)[:, columns]
    labels = np.concatenate([one.labels for one in each])[:, columns]
    order = [(part_name, part, int(i)) for (part_name, part), one in zip(splits, each, strict=True) for i in one.index]
    groups = [part.groups[i] for _, part, i in order]
    attributes = {key: [part.attributes[key][i] for _, part, i in order] for key in splits[0][1].attributes}

    names = list(mapping)
    common: dict[str, Any] = {"task": "multi-label", "bootstrap": bootstrap}
    val_probs, val_labels = _validation(run, names)
    metrics = {
        "run": {
            "name": run.name,
            "checkpoint": checkpoint,
            "trained_on": evaluated["run"].get("data"),
            "seed": config.seeds[0],
            "classes": names,
            "task": "multi-label",
        },
        "data": source.name,
        "split": split,
        "label_map": {known: list(others) for known, others in mapping.items()},
        "not_mapped": [known for known in classes if known not in mapping],
        "notes": list(source.notes),
        "scores": evaluate_predictions(probs, labels, groups, names, **common),
        "calibration": {
            "scope": evaluated["calibration"]["scope"],
            "temperature": {known: evaluated["calibration"]["temperature"][known] for known in names},
            "not_fitted": [known for known in evaluated["calibration"]["not_fitted"] if known in names],
            "uncalibrated": calibration_scores(probs, labels, groups, names, **common),
            "calibrated": calibration_scores(calibrated, labels, groups, names, **common),
        },
        "operating_points": operating_points(
            val_probs,
            val_labels,
            probs,
            labels,
            groups,
            names,
            bootstrap=bootstrap,
            specificities=evaluated.get("specificities", SPECIFICITIES),
        ),
        "subgroups": subgroup_scores(probs, labels, groups, names, attributes, bootstrap=bootstrap),
    }
    table = {
        "id": [part.ids[i] for _, part, i in order],
        "group": groups,
        "split": [part_name for part_name, _, _ in order],
    }
    for kind, values in (("label", labels), ("prob", probs), ("calibrated", calibrated)):
        table |= {f"{kind}:{known}": values[:, k] for k, known in enumerate(names)}
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)
    write_json(folder / "metrics.json", metrics)
    write_external_report(folder, run)
    return metrics


class _Relabelled:
    """A split of the other set under the classes of the run: ``(N, C)`` labels, NaN where there is no counterpart."""

    def __init__(
        self,
        split: StudySplit,
        external: Sequence[str],
        mapping: Mapping[str, Sequence[str]],
        classes: Sequence[str],
    ) -> None:
        self.split = split
        self.ids, self.groups, self.texts = split.ids, split.groups, split.texts
        self.has_image = images_present(split)
        self.attributes: Mapping[str, Sequence[str]] = getattr(split, "attributes", {})
        self.labels = np.full((len(split), len(classes)), np.nan, np.float32)
        self.labels[:, [classes.index(known) for known in mapping]] = map_labels(split.labels, external, mapping)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Study:
        return replace(self.split[index], labels=self.labels[index].copy())


def _validation(run: Path, names: Sequence[str]) -> tuple[Any, Any]:
    """Reads probabilities and labels of the run's own validation split."""
    table = pd.read_csv(run / "predictions.csv")
    table = table[table["split"] == "val"]
    return tuple(table[[f"{kind}:{name}" for name in names]].to_numpy(np.float64) for kind in ("prob", "label"))
