"""Baselines small enough for a test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.medvlmoe.baselines.presets import tiny_edition
from recipes.medvlmoe.config import Config, PhantomConfig


def small_baseline(name: str, out: Path, *, contrast: dict[str, Any] | None = None, **train: Any) -> Config:
    """A tiny baseline on a phantom of a few studies; three epochs of contrast, two of the classifier."""
    base = tiny_edition(name)
    model = replace(
        base.model, image_size=64, dim=32, text_tokens=48, contrast=replace(base.model.contrast, **contrast or {})
    )
    settings = {"epochs": 2, "contrast_epochs": 3, "batch_size": 16, "accelerator": "cpu", "augment": False} | train
    if model.contrast.objective == "none" or model.classifier == "zero-shot":
        settings["epochs"] = settings.pop("contrast_epochs")
    data = replace(base.data, phantom=PhantomConfig(train_studies=48, val_studies=24, test_studies=24))
    return replace(base, out=out, data=data, model=model, train=replace(base.train, **settings))
