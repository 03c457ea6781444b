"""timm models by name, from a local folder or from a hub, with pretrained, random or given weights."""

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
    name: str, size: int, *, weights: str, optional_kwargs: dict[str, Any], fixed_kwargs: dict[str, Any]
) -> tuple[nn.Module, ImageEncoderSpec]:
    """Builds a timm model, and the spec that it can be built from again.

    Args:
        name: A timm name, a folder saved by ``timm.models.save_for_hf``, or ``hf-hub:owner/name``.
        size: Side of the square input, in pixels.
        weights: ``"hub"``, ``"random"``, or the path of a file (see
            :func:`~recipes.shared.encoders.weights.load_weights_file`). A folder brings its own weights.
        optional_kwargs: Passed to those architectures that accept them, unless ``None``.
        fixed_kwargs: Passed to every architecture; they are not part of the spec.

    Returns:
        The model, and its spec, whose options are those of ``optional_kwargs`` that were accepted and those that its
        folder or repository was saved with.

    Raises:
        ValueError: If timm knows no such model, ``weights`` is neither word nor an existing file, or the file
            does not fit.
        RuntimeError: If the weights cannot be loaded; the message names a remedy.
    """
    source = f"local-dir:{Path(name).resolve()}" if Path(name).is_dir() else name
    if weights not in (HUB, RANDOM) and not Path(weights).is_file():
        raise ValueError(f'weights must be "hub", "random" or an existing file, got {weights!r} (--image-weights).')
    if ":" not in source and not timm.is_model(source.split(".")[0]):
        raise ValueError(
            f"image encoder {name!r} is no timm model and no local folder. timm.list_models() lists the names; "
            "a folder must hold the config.json that timm.models.save_for_hf writes (--image-encoder)."
        )
    with loading(f"image encoder {name!r}", _REMEDY):
        saved = _saved_options(source)
        model, used = _create(source, optional_kwargs, pretrained=weights == HUB, **fixed_kwargs)
    cfg = model.pretrained_cfg
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if weights not in (HUB, RANDOM):
        whole = timm.create_model(source, pretrained=False, **used)
        mean, std = load_weights_file(model, whole, Path(weights)) or (mean, std)
    options = {key: value for key, value in {**saved, **used}.items() if key not in fixed_kwargs}
    return model, ImageEncoderSpec(cfg["architecture"], size, mean, std, options)


def blank_pass(encoder: nn.Module, spec: ImageEncoderSpec) -> Any:
    """Encodes a blank image, since architectures report their shapes in no common way.

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


def checkpoint_model(model: Any, architecture: str) -> None:
    """Computes activations of the blocks of a model again in backward instead of keeping them.

    Raises:
        ValueError: If the architecture cannot.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ValueError(
            f"activation_checkpointing (--activation-checkpointing) is not known to image encoder {architecture!r}: "
            "leave it out, or give another --image-encoder."
        ) from error


def _saved_options(source: str) -> dict[str, Any]:
    """Reads the arguments that a folder or a repository was saved with; timm applies them silently."""
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        return dict(json.loads((Path(place) / "config.json").read_text()).get("model_args") or {})
    if kind in ("hf-hub", "hf_hub"):
        return dict(timm.models.load_model_config_from_hf(place)[2] or {})
    return {}


def _create(source: str, optional_kwargs: dict[str, Any], **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a model with those of the optional arguments that its architecture accepts; returns it and them.

    Only some architectures are built for an input size (ViT, Swin) or accept a stride (ResNet, ConvNeXt). timm has
    no list of which; the constructors of the others refuse the argument.
    """
    names = [name for name, value in optional_kwargs.items() if value is not None]
    for count in range(len(names), -1, -1):
        for chosen in combinations(names, count):
            options = {name: optional_kwargs[name] for name in chosen}
            try:
                return timm.create_model(source, **options, **kwargs), options
            except (TypeError, AssertionError) as error:
                # Some that have one stride only raise an assertion.
                refused = isinstance(error, AssertionError) or any(name in str(error) for name in chosen)
                if not chosen or not refused:
                    raise
    raise AssertionError("unreachable: without optional arguments a model is returned or an error raised")
