"""Reads what a run left in its folder; every error names the file at fault."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recipes.shared.epochs import training_from_one
from recipes.shared.report.files import MISSING, check_section, read_examples, read_history, read_object

HISTORY_KEYS = ("epoch", "train_loss")
TEST_KEYS = ("macro_auroc", "per_class", "undefined_classes", "studies", "groups", "bootstrap")
EXAMPLE_KEYS = ("images", "probs", "labels", "ids", "texts", "boxes")
"""Always there; ``attention`` needs cross-modal fusion, ``experts`` and ``gates`` a mixture."""


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
        config: The frozen configuration.
        metrics: ``metrics.json``.
        history: One record per epoch, in order.
        labels: Test labels, shape ``(N, C)``, NaN where unknown.
        probs: Test probabilities, shape ``(N, C)``.
        examples: Arrays of ``examples.npz``, or ``None`` where there is no such file or it holds no study.
        errors: Arrays of ``errors.npz``, likewise.
    """

    config: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    labels: NDArray[np.float64]
    probs: NDArray[np.float64]
    examples: dict[str, NDArray[Any]] | None
    errors: dict[str, NDArray[Any]] | None = None

    @property
    def training(self) -> dict[str, Any]:
        """The section ``training`` of ``metrics.json``, empty where it has none; epochs are numbered from 1."""
        return training_from_one(self.metrics.get("training") or {})

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the columns of every array."""
        return self.metrics["run"]["classes"]


def read_run(run_dir: Path) -> Run:
    """Reads ``config.json``, ``metrics.json``, ``history.jsonl``, ``predictions.csv`` and ``examples.npz``.

    Args:
        run_dir: The run's folder.

    Raises:
        ValueError: Naming the file that is missing, cannot be read, lacks a field or contradicts another.
            Only ``examples.npz`` and ``errors.npz`` may be missing.
    """
    config = read_object(run_dir / "config.json")
    metrics = read_object(run_dir / "metrics.json", ("run", "test"))
    check_section(run_dir / "metrics.json", metrics, "test", TEST_KEYS)
    check_section(run_dir / "metrics.json", metrics, "run", ("classes",))
    classes, scores = metrics["run"]["classes"], metrics["test"]["per_class"]
    if not isinstance(classes, list) or not isinstance(scores, dict) or sorted(map(str, classes)) != sorted(scores):
        raise ValueError(f'{run_dir / "metrics.json"}: "run" and "test" must name the same classes.')
    labels, probs = read_predictions(run_dir / "predictions.csv", classes)
    if len(labels) != metrics["test"]["studies"]:
        raise ValueError(
            f"{run_dir / 'predictions.csv'}: expected the {metrics['test']['studies']} test studies of "
            f"metrics.json, got {len(labels)}. The two files are of different runs."
        )
    history = read_history(run_dir / "history.jsonl", HISTORY_KEYS)
    examples, errors = (_examples(run_dir / name, labels.shape[1]) for name in ("examples.npz", "errors.npz"))
    return Run(config, metrics, history, labels, probs, examples, errors)


def read_predictions(
    path: Path, classes: list[str], *, split: str | None = "test"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reads labels and probabilities, each ``(N, C)``, of a table of predictions.

    Args:
        path: The table.
        classes: Names of the classes.
        split: Of which split; ``None`` for all rows.

    Raises:
        ValueError: Naming the file, if it is missing, lacks a column or holds anything but numbers.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {MISSING}")
    labels, probs = [f"label:{name}" for name in classes], [f"prob:{name}" for name in classes]
    try:
        frame = pd.read_csv(path)
        frame = frame if split is None else frame[frame["split"] == split]
        return frame[labels].to_numpy(np.float64), frame[probs].to_numpy(np.float64)
    except KeyError as error:
        raise ValueError(f"{path}: a column is missing: {error.args[0]}.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise ValueError(f"{path}: expected a table of numbers ({error}).") from error


def _examples(path: Path, num_classes: int) -> dict[str, NDArray[Any]] | None:
    arrays = read_examples(path, EXAMPLE_KEYS)
    if arrays is None:
        return None
    for key in ("probs", "labels"):
        expected = (len(arrays["images"]), num_classes)
        if arrays[key].shape != expected:
            raise ValueError(f"{path}: {key!r} must have shape {expected}, got {arrays[key].shape}.")
    return arrays
