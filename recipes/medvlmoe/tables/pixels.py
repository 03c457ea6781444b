"""The floor of a table: a logistic regression on the pixels. A model below it has learned nothing from the images."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.data.studies import StudySplit
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.sources import build_source
from recipes.shared.fingerprint import write_fingerprint
from recipes.shared.loading import FittedImages
from recipes.shared.runs import write_json
from recipes.shared.scores.metrics import evaluate_predictions

SIDE = 28
"""Of the square to which images are fitted, in pixels."""
MOST_STUDIES = 10_000
"""Training studies at most, drawn at random from larger sets."""
DRAWN_SIZE = 96
"""Side at which phantoms are drawn before that."""


def pixel_floor(config: Config, *, bootstrap: int) -> dict[str, Any]:
    """Fits the regression on the training split and scores it on the test split, into the run's folder.

    Args:
        config: ``data``, ``out`` and ``seeds`` are read.
        bootstrap: Resamples of patients for the interval.

    Returns:
        What tables show of it.
    """
    source = build_source(config.data, DRAWN_SIZE)
    rng = np.random.default_rng(config.seeds[0])
    count = len(source.train)
    rows = np.sort(rng.permutation(count)[:MOST_STUDIES])
    pixels, labels = _pixels(source.train, rows), source.train.labels[rows]
    fits = _fit_classes(pixels, labels) if source.task == "multi-label" else _fit_one(pixels, labels)
    tables, scores = [], {}
    for name, split in (("val", source.val), ("test", source.test)):
        probs = fits(_pixels(split, np.arange(len(split))))
        scores[name] = evaluate_predictions(
            probs, split.labels, split.groups, source.classes, task=source.task, bootstrap=bootstrap
        )
        columns: dict[str, Any] = {"id": list(split.ids), "group": list(split.groups), "split": name}
        for kind, values in (("label", split.labels), ("prob", probs)):
            columns |= {f"{kind}:{c}": values[:, k] for k, c in enumerate(source.classes)}
        tables.append(pd.DataFrame(columns))
    pd.concat(tables).to_csv(config.out / "predictions.csv", index=False)
    write_json(config.out / "metrics.json", scores)
    write_fingerprint(config.out, source.splits())
    test = scores["test"]
    return {
        "macro_auroc": test["macro_auroc"],
        "macro_auroc_ci95": test["macro_auroc_ci95"],
        "val_macro_auroc": scores["val"]["macro_auroc"],
        "undefined_classes": test["undefined_classes"],
        "studies": {name: len(split) for name, split in source.splits()},
        "patients": test["groups"],
        "classes": list(source.classes),
        "task": source.task,
        "text": False,
        "parameters": labels.shape[1] * (pixels.shape[1] + 1),
        "notes": list(source.notes),
    }


def _pixels(split: StudySplit, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    images = FittedImages(split, SIDE)
    flat = [np.asarray(images.fitted(int(row)), np.float64) / 255 for row in rows]
    depth = max((image.ndim for image in flat), default=2)
    return np.stack([(image if image.ndim == depth else np.repeat(image[..., None], 3, -1)).ravel() for image in flat])


def _regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))


def _fit_one(pixels: NDArray[np.float64], labels: NDArray[np.float32]) -> Any:
    """Fits one regression to the classes of a single-label task."""
    known = ~np.isnan(labels).any(axis=1)
    fit = _regression().fit(pixels[known], labels[known].argmax(axis=1))

    def probs(of: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.zeros((len(of), labels.shape[1]))
        values[:, fit.classes_] = fit.predict_proba(of)
        return values

    return probs


def _fit_classes(pixels: NDArray[np.float64], labels: NDArray[np.float32]) -> Any:
    """Fits a regression to each class with both outcomes; the others get their share of positives."""
    fits: list[Any] = []
    for column in labels.T:
        known = ~np.isnan(column)
        two = len(np.unique(column[known])) == 2
        constant = float(column[known].mean()) if known.any() else 0.5
        fits.append(_regression().fit(pixels[known], column[known]) if two else constant)

    def probs(of: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [np.full(len(of), fit) if isinstance(fit, float) else fit.predict_proba(of)[:, 1] for fit in fits]
        return np.stack(columns, axis=1)

    return probs
