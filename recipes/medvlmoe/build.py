"""From settings to a model, and from a run's folder back to one without asking any hub."""

from pathlib import Path

from recipes.data.studies import Task
from recipes.medvlmoe.baselines.config import has_contrastive_stage, trains_on_pairs
from recipes.medvlmoe.baselines.late_fusion import LateFusion
from recipes.medvlmoe.baselines.model import PairModel
from recipes.medvlmoe.baselines.stage import STAGE
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.model import MedVLMoE, reads_text
from recipes.shared.checkpoints import load_weights
from recipes.shared.encoders.image import ImageEncoder, ImageEncoderSpec, load_image_encoder
from recipes.shared.encoders.text import TextEncoder, load_text_encoder
from recipes.shared.runs import built_from, read_object, write_json
from recipes.shared.settings import read_settings

Model = MedVLMoE | LateFusion | PairModel
"""A model of the recipe: all are called, trained and evaluated alike."""


def new_model(config: Config, texts: list[str], classes: tuple[str, ...], task: Task) -> Model:
    """Builds the model of a new run, with the encoders' pretrained weights where the settings ask for them.

    After a contrastive stage the encoders are those that it trained.

    Args:
        config: The settings.
        texts: The training texts that the model reads; none means no text encoder.
        classes: Names of the classes.
        task: Kind of the target.

    Raises:
        RuntimeError: If pretrained weights cannot be had.
        ValueError: If an encoder's name or weights are not valid.
    """
    model = config.model
    needs_text = trains_on_pairs(model.classifier) or (bool(texts) and reads_text(model))
    if has_contrastive_stage(model.classifier, model.contrast):
        pairs = load_model(config.out / STAGE)[0].train().requires_grad_(True)
        image_encoder, text_encoder = pairs.image_encoder, pairs.text_encoder if needs_text else None
    else:
        image_encoder = load_image_encoder(
            model.image_encoder, model.image_size, weights=model.image_weights, output_stride=model.image_stride
        )
        text_encoder = None
        if needs_text:
            text_encoder = load_text_encoder(model.text_encoder, weights=model.text_weights, texts=texts)
    return _assemble(config, image_encoder, text_encoder, classes, task)


def save_architecture(model: Model, classes: tuple[str, ...], task: Task, out: Path) -> None:
    """Writes what :func:`load_model` needs beside the weights."""
    folder = out / "encoders"
    folder.mkdir(parents=True, exist_ok=True)
    has_text = model.text_encoder is not None
    write_json(
        folder / "model.json",
        {"image": model.image_encoder.spec.to_json(), "text": has_text, "classes": classes, "task": task},
    )
    if model.text_encoder is not None:
        model.text_encoder.save(folder / "text")


def load_model(run: Path, checkpoint: str = "best") -> tuple[Model, Config, tuple[str, ...], Task]:
    """Builds the model of a run and loads its weights.

    Args:
        run: Folder of the run.
        checkpoint: ``"best"`` or ``"last"``.

    Returns:
        The model in eval mode, its settings, classes and task.

    Raises:
        ValueError: If the folder is not that of a trained run.
    """
    config = read_settings(Config, run)
    path = run / "encoders" / "model.json"
    about = read_object(path, ("image", "text", "classes", "task"))
    text_encoder = TextEncoder.from_saved(run / "encoders" / "text") if about["text"] else None
    with built_from(path):
        classes, task = tuple(about["classes"]), about["task"]
        image_encoder = ImageEncoder.from_spec(ImageEncoderSpec.from_json(about["image"]))
        model = _assemble(config, image_encoder, text_encoder, classes, task)
    load_weights(model, run, checkpoint)
    return model.eval(), config, classes, task


def _assemble(
    config: Config,
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder | None,
    classes: tuple[str, ...],
    task: Task,
) -> Model:
    """Puts what reads the diagnosis on top of the encoders."""
    model = config.model
    if trains_on_pairs(model.classifier):
        assert text_encoder is not None
        return PairModel(model, image_encoder, text_encoder, classes, task)
    if model.classifier == "late-fusion":
        return LateFusion(model, image_encoder, text_encoder, len(classes), task)
    return MedVLMoE(model, image_encoder, text_encoder, len(classes), task, config.train.balance)
