"""timm models by name, from a local folder or from a hub, with the weights that were asked for."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from recipes.shared.encoders.hub import loading
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.weights import load_weights_file

RANDOM = "random"
HUB = "hub"

_REMEDY = (
    "Give --image-encoder a local folder (timm.models.save_for_hf writes one), or --image-weights a file with "
    "the weights, or --image-weights random to train from scratch."
)


def build(
    name: str, size: int, *, weights: str, wishes: dict[str, Any], fixed: dict[str, Any]
) -> tuple[nn.Module, ImageEncoderSpec]:
    """Builds a timm model and says from what.

    Args:
        name: A timm name, a folder saved by ``timm.models.save_for_hf``, or ``hf-hub:owner/name``.
        size: Side of the square input, in pixels.
        weights: ``"hub"``, ``"random"``, or the path of a file (see
            :func:`~recipes.shared.encoders.weights.load_weights_file`). A folder brings its own weights.
        wishes: Arguments for those architectures that know them; None is no wish.
        fixed: Arguments that every architecture must take; they are not part of the spec.

    Returns:
        The model, and its spec: options are the wishes it took and what its folder or repository says.

    Raises:
        ValueError: If timm knows no such model, ``weights`` is neither word nor an existing file, or the file
            does not fit.
        RuntimeError: If the weights cannot be loaded; the message says what to do.
    """
    source = f"local-dir:{Path(name).resolve()}" if Path(name).is_dir() else name
    if weights not in (HUB, RANDOM) and not Path(weights).is_file():
        raise ValueError(f'weights must be "hub", "random" or an existing file, got {weights!r}.')
    if ":" not in source and not timm.is_model(source.split(".")[0]):
        raise ValueError(
            f"image encoder {name!r} is no timm model and no local folder. timm.list_models() lists the names; "
            "a folder must hold the config.json that timm.models.save_for_hf writes."
        )
    with loading(f"image encoder {name!r}", _REMEDY):
        saved = _saved_options(source)
        model, used = _create(source, wishes, pretrained=weights == HUB, **fixed)
    cfg = model.pretrained_cfg
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if weights not in (HUB, RANDOM):
        whole = timm.create_model(source, pretrained=False, **used)
        mean, std = load_weights_file(model, whole, Path(weights)) or (mean, std)
    options = {key: value for key, value in {**saved, **used}.items() if key not in fixed}
    return model, ImageEncoderSpec(cfg["architecture"], size, mean, std, options)


def blank_pass(encoder: nn.Module, spec: ImageEncoderSpec) -> Any:
    """What an encoder makes of a blank image; architectures tell their shapes in no common way.

    Raises:
        ValueError: If the encoder does not take images of the spec's size.
    """
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            return encoder(torch.zeros(1, 3, spec.size, spec.size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"image encoder {spec.architecture!r} cannot be used at {spec.size} x {spec.size} pixels ({error}): "
            "give another --image-size or --image-encoder."
        ) from error
    finally:
        encoder.train(training)


def _saved_options(source: str) -> dict[str, Any]:
    """The arguments that a folder or a repository was saved with; timm applies them silently."""
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        return dict(json.loads((Path(place) / "config.json").read_text()).get("model_args") or {})
    if kind in ("hf-hub", "hf_hub"):
        return dict(timm.models.load_model_config_from_hf(place)[2] or {})
    return {}


def _create(source: str, wishes: dict[str, Any], **how: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a model with those wishes that its architecture knows; returns it and them.

    Only some architectures are built for an input size (ViT, Swin) or let one choose a stride (ResNet,
    ConvNeXt). timm has no list of which; the constructors of the others refuse the argument.
    """
    names = [name for name, value in wishes.items() if value is not None]
    for count in range(len(names), -1, -1):
        for chosen in combinations(names, count):
            options = {name: wishes[name] for name in chosen}
            try:
                return timm.create_model(source, **options, **how), options
            except (TypeError, AssertionError) as error:
                # An assertion is how some say that they have one stride only.
                refused = isinstance(error, AssertionError) or any(name in str(error) for name in chosen)
                if not chosen or not refused:
                    raise
    raise AssertionError("unreachable: without wishes a model is returned or an error raised")
