"""Weights from a file into a timm model, whole or cut into a feature extractor."""

import sys
from collections.abc import Iterable
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn

from recipes.shared.encoders import medclip
from recipes.shared.encoders.hub import first_line

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def load_weights_file(model: nn.Module, whole: nn.Module, path: Path) -> Normalisation | None:
    """Loads a state dict into a model, or raises an error that names the weights that do not fit.

    Layouts: timm's own (with or without its head; of a training checkpoint the entry ``state_dict`` or ``model``),
    the architecture's original one where timm converts that, and Hugging Face's ``SwinModel``, alone or inside
    MedCLIP's ``pytorch_model.bin`` (see :mod:`recipes.shared.encoders.medclip`). What depends on the size of the input
    (position embeddings, relative position biases) is resized as timm does.

    Args:
        model: Takes the weights: a timm model without its head, or what ``features_only`` makes of it.
        whole: The same architecture, whole; its names are those that a file may hold.
        path: The file, of ``torch.save`` (read with ``weights_only``) or safetensors.

    Returns:
        Mean and standard deviation that the weights were trained with, where the layout settles them.

    Raises:
        ValueError: If the file cannot be read, or lacks weights of the model, or holds others, or of another
            shape.
    """
    try:
        state = load_state_dict(str(path), use_ema=False)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a file of weights: {first_line(error)}") from error
    normalisation = None
    if medclip.is_hugging_face_swin(state):
        normalisation = medclip.normalisation(state)
        state = medclip.to_timm(state)
    state = _filtered(state, whole)
    by_plain_name = {_plain(name): value for name, value in state.items()}
    names = {_plain(name): name for name in model.state_dict()}
    known = {_plain(name) for name in whole.state_dict()} | names.keys()
    missing = [name for plain, name in names.items() if plain not in by_plain_name]
    unexpected = [name for name in state if _plain(name) not in known]
    architecture = whole.pretrained_cfg["architecture"]
    if missing or unexpected:
        raise ValueError(
            f"{path} does not hold the weights of {architecture}: {len(missing)} missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}. Give --image-encoder the architecture that the file "
            "was saved from."
        )
    try:
        model.load_state_dict({name: by_plain_name[plain] for plain, name in names.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1:3]
        raise ValueError(f"{path} holds weights of another {architecture}: {' '.join(reason).strip()}") from error
    return normalisation


def _filtered(state: dict[str, Tensor], whole: nn.Module) -> dict[str, Tensor]:
    """Returns the state as timm would load it: each of its architectures may bring a function for that."""
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, whole)
    except (AttributeError, KeyError, RuntimeError, TypeError):
        # It looks for weights of its own architecture in a file of another. The names will be compared next,
        # which gives the better error.
        return state


def _plain(name: str) -> str:
    """Returns a name that is the same in a whole model and in its feature extractor.

    timm's extractors rename ``layers.0.x`` to ``layers_0.x``, or put ``model.`` before every name.
    """
    return name.removeprefix("model.").replace(".", "_")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = ", ..." if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})" if names else ""
