"""The baselines' settings, published and tiny; sources and what is left out are in docs/medvlmoe-baselines.md."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from recipes.medvlmoe.baselines import BASELINES
from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.medvlmoe.config import Config, paper, tiny

_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
_RESNET50 = "resnet50.tv_in1k"

_CONTRASTS: Mapping[str, ContrastConfig] = {
    "convirt": ContrastConfig(
        "convirt", projection="mlp", temperature=0.1, image_to_text_weight=0.75, frozen_text_layers=6
    ),
    "gloria": ContrastConfig("gloria", text_layers=(-4, -3, -2, -1)),
    "biovil": ContrastConfig("biovil", projection="mlp", temperature=0.5, local_weight=0.5),
    "clip-med": ContrastConfig("clip", temperature=0.01, learn_temperature=True),
    "biobert-vqa": ContrastConfig(),
    "chexzero": ContrastConfig("clip", temperature=0.01, learn_temperature=True, prompt="{}"),
    "medclip": ContrastConfig("medclip", learn_temperature=True, text_layers=(1, 2, -1)),
}
"""What each method trains its encoders by."""

_CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    "biobert-vqa": {"classifier": "late-fusion"},
    "chexzero": {"classifier": "zero-shot"},
}
"""What the diagnosis is read from; of all others a linear classifier on the image encoder, fine-tuned."""

_LINEAR = {"variant": "vision-only"}

_MODELS: Mapping[str, Mapping[str, Any]] = {
    "convirt": {"image_encoder": _RESNET50, "text_encoder": _CLINICAL_BERT, "text_pooling": "max", "dim": 512},
    "gloria": {"image_encoder": _RESNET50, "image_stride": 16, "text_encoder": _CLINICAL_BERT, "dim": 768},
    "biovil": {
        "image_encoder": _RESNET50,
        "text_encoder": "microsoft/BiomedVLP-CXR-BERT-general",
        "text_pooling": "first",
        "dim": 128,
    },
    "clip-med": {
        "image_encoder": "open_clip:ViT-L-14-quickgelu/openai",
        "text_encoder": "open_clip:ViT-L-14-quickgelu/openai",
        "text_pooling": "last",
        "text_tokens": 77,
        "dim": 768,
    },
    "biobert-vqa": {
        "image_encoder": "resnet152.tv_in1k",
        "text_encoder": "dmis-lab/biobert-v1.1",
        "text_pooling": "first",
        "dim": 512,
    },
    "chexzero": {
        "image_encoder": "open_clip:ViT-B-32-quickgelu/openai",
        "text_encoder": "open_clip:ViT-B-32-quickgelu/openai",
        "text_pooling": "last",
        "text_tokens": 77,
        "dim": 512,
    },
    "medclip": {
        "image_encoder": "swin_tiny_patch4_window7_224",
        "text_encoder": _CLINICAL_BERT,
        "text_pooling": "mean",
        "dim": 512,
    },
}
"""Encoders and width of the common space."""

_TRAINING: Mapping[str, Mapping[str, Any]] = {
    "gloria": {"contrast_lr": 5e-5},
    "biovil": {"contrast_lr": 2e-5},
    "clip-med": {"contrast_lr": 1e-5},
    "chexzero": {"epochs": 10, "warmup_epochs": 1, "batch_size": 64, "lr_encoder": 1e-5, "lr_head": 1e-5},
    "medclip": {"contrast_lr": 2e-5, "contrast_epochs": 10},
}
"""Where a method departs from the training that all rows of Table 1 share."""

_CAUSAL = ("clip-med", "chexzero")
"""Methods whose text encoder reads from left to right, as CLIP's does."""


def published(name: str) -> Config:
    """Returns a baseline with the encoders of its publication, trained by the protocol of the paper's Table 1.

    Args:
        name: One of ``BASELINES``.
    """
    base = paper()
    model = replace(base.model, **_MODELS[name], **_CLASSIFIERS.get(name, _LINEAR), contrast=_CONTRASTS[name])
    train = replace(base.train, **_TRAINING.get(name, {}))
    return replace(base, preset=name, model=model, train=train)


def tiny_edition(name: str) -> Config:
    """Returns a baseline with the small encoders of the preset ``tiny``; objective and head are the published ones.

    Args:
        name: One of ``BASELINES``.
    """
    base = tiny()
    causal = name in _CAUSAL
    contrast = _CONTRASTS[name]
    # Two layers of text encoder are there to choose from, and none comes pretrained.
    contrast = replace(contrast, frozen_text_layers=0, temperature=max(contrast.temperature, 0.07))
    if len(contrast.text_layers) > 1:
        contrast = replace(contrast, text_layers=(-2, -1))
    model = replace(
        base.model,
        text_encoder="tiny" if causal else "tiny-bert",
        text_pooling=_MODELS[name].get("text_pooling", "mean"),
        contrast=contrast,
        **_CLASSIFIERS.get(name, _LINEAR),
    )
    train = replace(base.train, contrast_epochs=8, contrast_lr=2e-3)
    return replace(base, preset=f"{name}-tiny", model=model, train=train)


def baseline_presets() -> dict[str, Callable[[], Config]]:
    """Returns what makes the settings of each baseline, by the name of its preset."""
    presets: dict[str, Callable[[], Config]] = {}
    for name in BASELINES:
        presets[name] = lambda name=name: published(name)
    for name in BASELINES:
        presets[f"{name}-tiny"] = lambda name=name: tiny_edition(name)
    return presets
