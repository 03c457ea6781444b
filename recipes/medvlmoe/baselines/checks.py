"""Settings of baselines that contradict each other, or that nothing reads: refused before anything is built."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

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


def without_unread(config: Config) -> tuple[Config, frozenset[str]]:
    """Puts settings that a run would not read back to those of its preset.

    Args:
        config: The settings.

    Returns:
        The settings, and the command line's names of those that were put back, such as ``--contrast-epochs``.
    """
    preset = _preset(config)
    unread = list(_unread(config))
    changes: dict[str, dict[str, Any]] = {}
    for one in unread:
        changes.setdefault(one.part, {})[one.name] = getattr(_part(preset, one.part), one.name)
    contrast = replace(config.model.contrast, **changes.get("contrast", {}))
    model = replace(config.model, **changes.get("model", {}), contrast=contrast)
    train = replace(config.train, **changes.get("train", {}))
    return replace(config, model=model, train=train), frozenset(one.option for one in unread)


class _Unread(NamedTuple):
    """A setting that differs from its preset's and is not read, with the options that decide so."""

    part: Literal["model", "contrast", "train"]
    name: str
    who: str

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"


def _check_unread(config: Config) -> None:
    """Refuses settings that differ from their preset's and are not read."""
    unread = list(_unread(config))
    if unread:
        who = unread[0].who
        names = list(dict.fromkeys(f"{one.name} ({one.option})" for one in unread if one.who == who))
        verb = "is" if len(names) == 1 else "are"
        raise ValueError(f"{', '.join(names)} {verb} not read with {who}: leave it out.")


def _unread(config: Config) -> Iterator[_Unread]:
    model, contrast = config.model, config.model.contrast
    if contrast.objective == "none":
        yield from _changed(config, "contrast", frozenset({"objective"}), "--objective none")
    else:
        read = _READ_BY_ALL | _READ_BY[contrast.objective]
        yield from _changed(config, "contrast", read, f"--objective {contrast.objective}")
    train = frozenset(field.name for field in fields(config.train))
    if trains_on_pairs(model.classifier) or contrast.objective == "none":
        who = f"--classifier {model.classifier} --objective {contrast.objective}"
        yield from _changed(config, "train", train - {"contrast_epochs", "contrast_lr"}, who)
    if model.classifier == "medvlmoe" and config.preset in ("paper", "tiny"):
        return
    who = f"--preset {config.preset} --classifier {model.classifier}"
    yield from _changed(config, "model", _read_of_model(model), who)
    if model.classifier != "medvlmoe" or model.variant == "vision-only":
        yield from _changed(config, "train", train - set(_OF_MEDVLMOE), who)
    if trains_on_pairs(model.classifier):
        yield from _changed(config, "train", train - {"class_weights"}, who)


def _read_of_model(model: ModelConfig) -> frozenset[str]:
    """Returns the settings of the architecture that its classifier and its contrast read."""
    if model.classifier == "medvlmoe" and model.variant != "vision-only":
        return frozenset(field.name for field in fields(model))
    read = _OF_ENCODERS
    if model.contrast.objective != "none" or model.classifier == "late-fusion":
        read |= {"text_pooling", "dim"}
    return read | {"dropout"} if model.classifier == "late-fusion" else read


def _changed(
    config: Config, part: Literal["model", "contrast", "train"], read: frozenset[str], who: str
) -> Iterator[_Unread]:
    own, preset = _part(config, part), _part(_preset(config), part)
    for field in fields(own):
        if field.name not in read and getattr(own, field.name) != getattr(preset, field.name):
            yield _Unread(part, field.name, who)


def _part(config: Config, part: Literal["model", "contrast", "train"]) -> Any:
    return config.model.contrast if part == "contrast" else getattr(config, part)


def _preset(config: Config) -> Config:
    from recipes.medvlmoe.presets import PRESETS  # which imports the settings that this module checks

    return PRESETS[config.preset]()
