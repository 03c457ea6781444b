"""The settings of the baselines: those of ``release`` or ``tiny``, with another objective."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from recipes.medmoe.baselines import BASELINES
from recipes.medmoe.config import Config, release, tiny

_CLIP_SCALE = 1 / 0.07
"""Where the scale of CLIP and MedCLIP begins."""
_CONVIRT_SCALE = 1 / 0.1

_MODELS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"local_branch": "none", "learned_scale": True},
    "convirt": {"local_branch": "none", "projection": "mlp", "text_pooling": "max"},
    "medclip": {"local_branch": "none", "learned_scale": True},
    "gloria": {"local_branch": "map"},
    "one-expert": {"local_branch": "one-expert"},
}
"""Parts of the model."""

_SCALES: Mapping[str, float] = {"clip": _CLIP_SCALE, "convirt": _CONVIRT_SCALE, "medclip": _CLIP_SCALE}
"""The third temperature, where the method has its own."""

_TRAINING: Mapping[str, Mapping[str, Any]] = {
    "convirt": {"image_to_text_weight": 0.75},
    "medclip": {"global_targets": "findings"},
}


def baseline(name: str, base: Config, preset: str) -> Config:
    """Returns a baseline on the encoders and the training of MedMoE.

    Args:
        name: One of ``BASELINES``.
        base: Settings of MedMoE.
        preset: What to call it.
    """
    first, second, third = base.model.temperatures
    temperatures = (first, second, _SCALES.get(name, third))
    model = replace(base.model, temperatures=temperatures, **_MODELS[name])
    # Coefficients of losses that there are: 1 each, as published.
    train = replace(base.train, global_weight=1.0, local_weight=1.0, **_TRAINING.get(name, {}))
    return replace(base, preset=preset, model=model, train=train)


def baseline_presets() -> dict[str, Callable[[], Config]]:
    """Returns what makes the settings of each baseline, by the name of its preset."""
    presets: dict[str, Callable[[], Config]] = {}
    for name in BASELINES:
        presets[name] = lambda name=name: baseline(name, release(), name)
    for name in BASELINES:
        presets[f"{name}-tiny"] = lambda name=name: baseline(name, tiny(), f"{name}-tiny")
    return presets
