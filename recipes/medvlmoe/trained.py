"""A trained run that is applied to studies: its model, and the temperatures that calibrate its probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.image_files import ImageFiles
from recipes.data.studies import StudySplit, Task
from recipes.medvlmoe.build import Model, load_model
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.inference import Predictions, dataset_of, predict_batches
from recipes.medvlmoe.model import reads_text, takes_text
from recipes.shared.epochs import training_from_one
from recipes.shared.runs import read_object, run_device
from recipes.shared.scores.temperature import scaled_probs


@dataclass(frozen=True)
class TrainedRun:
    """A trained run.

    Attributes:
        folder: Of the run.
        model: Its model in eval mode, where it computes.
        config: Its settings.
        classes: Names of the classes.
        task: Kind of the target.
        temperatures: ``(C,)``, of the run's own evaluation; ``None`` where it has none that fits.
        why_uncalibrated: Why there are none, and what to do; empty where there are.
    """

    folder: Path
    model: Model
    config: Config
    classes: tuple[str, ...]
    task: Task
    temperatures: NDArray[np.float64] | None
    why_uncalibrated: str

    @property
    def reads_text(self) -> bool:
        """Whether the model reads texts."""
        return takes_text(self.model) and self.config.data.use_text

    @property
    def why_no_text(self) -> str:
        """Says why a run that reads no text does so, as what follows its name."""
        model = self.config.model
        if reads_text(model):
            return "was trained without texts"
        option = "--classifier zero-shot" if model.classifier == "zero-shot" else f"--variant {model.variant}"
        return f"diagnoses from the image alone ({option})"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def predict(self, split: StudySplit, *, need_attention: bool = False, title: str | None = None) -> Predictions:
        """Runs the model over studies; notes without headers are read whole.

        Args:
            split: The studies.
            need_attention: Whether to return attention maps, of a model that has some.
            title: Of a progress bar; without one, images are read in this process.
        """
        settings = self.config.train if title is not None else replace(self.config.train, workers=0)
        loader = make_loader(dataset_of(split, self.config, self.model, whole_notes=True), settings, seed=None)
        return predict_batches(self.model, loader, device=self.device, need_attention=need_attention, title=title)

    def calibrated(self, predictions: Predictions) -> NDArray[np.float64] | None:
        """Returns the calibrated probabilities ``(N, C)``, ``None`` without temperatures."""
        if self.temperatures is None:
            return None
        return scaled_probs(predictions.logits, self.temperatures, task=self.task)

    def attention_maps(self, predictions: Predictions) -> NDArray[np.float32] | None:
        """Returns the attention over the image's patches ``(N, h, w)``, ``None`` where the model has no map."""
        attention, grid = predictions.attention, self.model.image_encoder.grid
        # The printed form of the cross-attention has one summary of the image, which shows no place.
        if attention is None or attention.shape[1] != grid[0] * grid[1] or attention.shape[1] == 1:
            return None
        return attention.reshape(-1, *grid)

    def has_attention(self) -> bool:
        """Tells whether the model has an attention map, by asking it for that of a black image."""
        size = self.model.image_encoder.spec.size
        blank = images_in_memory([np.zeros((size, size), np.uint8)], [None], num_classes=len(self.classes))
        return self.attention_maps(self.predict(blank, need_attention=True)) is not None


def load_run(run: Path, checkpoint: str = "best") -> TrainedRun:
    """Loads a trained run to where it computes.

    Args:
        run: Folder of the run.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        ValueError: If the folder is not that of a trained run.
    """
    model, config, classes, task = load_model(run, checkpoint)
    temperatures, why = stored_temperatures(run, classes, checkpoint)
    return TrainedRun(run, model.to(run_device(config.train.accelerator)), config, classes, task, temperatures, why)


def stored_temperatures(run: Path, classes: Sequence[str], checkpoint: str) -> tuple[NDArray[np.float64] | None, str]:
    """Reads the temperatures that the run's evaluation fitted on its validation split.

    Args:
        run: Folder of the run.
        classes: Names of the classes.
        checkpoint: The weights to calibrate.

    Returns:
        The temperatures ``(C,)`` and an empty text; or ``None``, and why there are none that fit these weights.

    Raises:
        ValueError: If ``metrics.json`` is damaged.
    """
    path = run / "metrics.json"
    again = f"run: python -m recipes.medvlmoe evaluate {run}" + " --checkpoint last" * (checkpoint == "last")
    if not path.is_file():
        return None, f"probabilities are not calibrated, since {run} was not evaluated; to calibrate them, {again}"
    metrics = read_object(path, ("run", "training"))
    if "calibration" not in metrics:
        return None, f"probabilities are not calibrated, since {run} was evaluated before runs were calibrated; {again}"
    evaluated = metrics["run"].get("checkpoint", "best")
    if evaluated != checkpoint:
        return None, (
            f"probabilities are not calibrated, since {run} was evaluated with its {evaluated} weights, not its "
            f"{checkpoint} ones; to calibrate them, {again}"
        )
    training = training_from_one(read_object(run / "training.json", ("epochs", "best_epoch")))
    evaluated_at = training_from_one(metrics["training"])
    if any(training[key] != evaluated_at.get(key) for key in ("epochs", "best_epoch")):
        return None, f"probabilities are not calibrated, since {run} was trained on after its evaluation; {again}"
    by_class = metrics["calibration"]["temperature"]
    if any(name not in by_class for name in classes):
        raise ValueError(f"{path} lacks the temperature of a class: it is of another run. To mend it, {again}")
    return np.array([by_class[name] for name in classes], np.float64), ""


def images_in_memory(
    images: Sequence[NDArray[np.uint8] | None], texts: Sequence[str | None], *, num_classes: int
) -> ImageFiles:
    """Makes studies without labels of images that are read already.

    Args:
        images: Each ``(H, W)`` or ``(H, W, 3)``, ``None`` for a study that has a text alone.
        texts: The text of each, ``None`` for none.
        num_classes: ``C``; all labels are NaN.
    """
    names = tuple(f"image {number}" for number in range(1, len(images) + 1))
    return ImageFiles(
        ids=names,
        paths=tuple("" if image is None else name for image, name in zip(images, names, strict=True)),
        details=tuple(images),
        labels=np.full((len(images), num_classes), np.nan, np.float32),
        groups=names,
        texts=tuple(texts),
        modalities=(None,) * len(images),
        read=_as_read,
    )


def _as_read(path: str, image: Any) -> tuple[NDArray[np.uint8], tuple[()]]:
    return image, ()
