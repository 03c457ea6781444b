"""From settings to a model, and from a run's folder back to one without asking any hub."""

from pathlib import Path

from recipes.medmoe.config import Config
from recipes.medmoe.model import MedMoE
from recipes.shared.checkpoints import load_weights
from recipes.shared.encoders.image import ImageEncoderSpec
from recipes.shared.encoders.pyramid import PyramidEncoder, load_pyramid_encoder
from recipes.shared.encoders.text import TextEncoder, load_text_encoder
from recipes.shared.runs import built_from, read_object, write_json
from recipes.shared.settings import read_settings


def new_model(config: Config, texts: list[str]) -> MedMoE:
    """Builds the model of a new run, with the encoders' pretrained weights where the settings ask for them.

    Args:
        config: The settings.
        texts: Training texts, for the vocabulary of a small text encoder.

    Raises:
        RuntimeError: If pretrained weights cannot be had.
        ValueError: If an encoder's name or weights are not valid.
    """
    model = config.model
    image_encoder = load_pyramid_encoder(model.image_encoder, model.image_size, weights=model.image_weights)
    text_encoder = load_text_encoder(model.text_encoder, weights=model.text_weights, texts=texts)
    return MedMoE(model, image_encoder, text_encoder)


def save_architecture(model: MedMoE, out: Path) -> None:
    """Writes what :func:`load_model` needs beside the weights."""
    folder = out / "encoders"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "model.json", {"image": model.image_encoder.spec.to_json()})
    model.text_encoder.save(folder / "text")


def load_model(run: Path, checkpoint: str = "best") -> tuple[MedMoE, Config]:
    """Builds the model of a run and loads its weights.

    Args:
        run: Folder of the run.
        checkpoint: ``"best"`` or ``"last"``.

    Returns:
        The model in eval mode and its settings.

    Raises:
        ValueError: If the folder is not that of a pretrained run.
    """
    config = read_settings(Config, run)
    path = run / "encoders" / "model.json"
    about = read_object(path, ("image",))
    text_encoder = TextEncoder.from_saved(run / "encoders" / "text")
    with built_from(path):
        image_encoder = PyramidEncoder.from_spec(ImageEncoderSpec.from_json(about["image"]))
        model = MedMoE(config.model, image_encoder, text_encoder)
    load_weights(model, run, checkpoint)
    return model.eval(), config
