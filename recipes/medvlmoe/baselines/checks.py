"""Settings of baselines that contradict each other, or that nothing reads: refused before anything is built."""

from dataclasses import fields
from typing import Any

from recipes.medvlmoe.baselines.config import Objective, trains_on_pairs
from recipes.medvlmoe.baselines.prompts import check_prompt
from recipes.medvlmoe.config import Config, ModelConfig

_READ_BY_ALL = frozenset(
    {"objective", "projection", "text_layers", "frozen_text_layers", "prompt", "absent"},
)
_READ_BY: dict[Objective, frozenset[str]] = {
    "convirt": frozenset({"temperature", "image_to_text_weight"}),
    "gloria": frozenset({"local_weight", "local_temperatures", "word_softmax"}),
    "biovil": frozenset({"temperature", "local_weight", "local_temperatures", "word_softmax", "masked_weight"}),
    "clip": frozenset({"temperature", "learn_temperature"}),
    "medclip": frozenset({"temperature", "learn_temperature"}),
}
"""Settings of :class:`ContrastConfig` that an objective reads."""
_OF_ENCODERS = frozenset(
    {
        "image_encoder", "image_weights", "image_size", "image_stride", "text_encoder", "text_weights", "text_tokens",
        "variant", "classifier", "contrast", "image_tuning", "text_tuning", "lora_rank", "lora_alpha",
    }
)  # fmt: skip
_OF_MEDVLMOE = ("balance", "balance_weight", "entropy_weight", "z_weight")
"""Settings of :class:`TrainConfig` for a router."""


def check_baseline(config: Config) -> None:
    """Refuses settings that contradict each other, and those of a baseline's preset that nothing would read.

    Raises:
        ValueError: Naming the setting, its option on the command line, and what to do.
    """
    model, contrast = config.model, config.model.contrast
    if trains_on_pairs(model.classifier) and contrast.objective == "none":
        raise ValueError(
            f"classifier (--classifier) {model.classifier!r} is trained by a contrast: choose one (--objective), or "
            "another classifier."
        )
    if contrast.learn_temperature and contrast.objective not in ("clip", "medclip"):
        raise ValueError(
            f"learn_temperature (--learn-temperature) is for the objectives clip and medclip, got "
            f"{contrast.objective!r}: leave it out."
        )
    check_prompt("prompt", "--prompt", contrast.prompt)
    check_prompt("absent", "--absent", contrast.absent)
    _check_unread(config)


def _check_unread(config: Config) -> None:
    """Refuses settings that differ from their preset's and are not read."""
    from recipes.medvlmoe.presets import PRESETS  # which imports the settings that this module checks

    preset = PRESETS[config.preset]()
    model, contrast, train = config.model, config.model.contrast, config.train
    if contrast.objective == "none":
        _refuse(contrast, preset.model.contrast, frozenset({"objective"}), "--objective none")
    else:
        read = _READ_BY_ALL | _READ_BY[contrast.objective]
        _refuse(contrast, preset.model.contrast, read, f"--objective {contrast.objective}")
    if trains_on_pairs(model.classifier) or contrast.objective == "none":
        unread = frozenset(field.name for field in fields(train)) - {"contrast_epochs", "contrast_lr"}
        _refuse(train, preset.train, unread, f"--classifier {model.classifier} --objective {contrast.objective}")
    if model.classifier == "medvlmoe" and config.preset in ("paper", "tiny"):
        return
    who = f"--preset {config.preset} --classifier {model.classifier}"
    _refuse(model, preset.model, _read_of_model(model), who)
    if model.classifier != "medvlmoe" or model.variant == "vision-only":
        rest = frozenset(field.name for field in fields(train)) - set(_OF_MEDVLMOE)
        _refuse(train, preset.train, rest, who)
    if trains_on_pairs(model.classifier):
        rest = frozenset(field.name for field in fields(train)) - {"class_weights"}
        _refuse(train, preset.train, rest, who)


def _read_of_model(model: ModelConfig) -> frozenset[str]:
    """Returns the settings of the architecture that its classifier and its contrast read."""
    if model.classifier == "medvlmoe" and model.variant != "vision-only":
        return frozenset(field.name for field in fields(model))
    read = _OF_ENCODERS
    if model.contrast.objective != "none" or model.classifier == "late-fusion":
        read |= {"text_pooling", "dim"}
    return read | {"dropout"} if model.classifier == "late-fusion" else read


def _refuse(settings: Any, preset: Any, read: frozenset[str], who: str) -> None:
    changed = [
        f"{field.name} (--{field.name.replace('_', '-')})"
        for field in fields(settings)
        if field.name not in read and getattr(settings, field.name) != getattr(preset, field.name)
    ]
    if changed:
        verb = "is" if len(changed) == 1 else "are"
        raise ValueError(f"{', '.join(changed)} {verb} not read with {who}: leave it out.")
