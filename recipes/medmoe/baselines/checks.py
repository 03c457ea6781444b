"""Settings that a model without experts, or without a local branch, does not read: refused before anything is built."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from recipes.medmoe.config import Config

_OF_ROUTER = ("num_experts", "route_on", "router_hidden_dim", "router_gradient")
_OF_EXPERTS = ("expert_dim", "expert_depth", "expert_norm", "scale_logits", "local_scales")
_OF_REGIONS = ("align_to", "attention", "learned_temperature", "mask_padding", "word_softmax")
_OF_ROUTER_LOSS = ("router_weight", "balance_weight")
_OF_LOCAL_LOSS = ("local_weight", "local_form", "word_aggregation", "gather_local")


class Unread(NamedTuple):
    """A setting of the model or the training that differs from its preset's and is not read.

    Attributes:
        part: ``"model"`` or ``"train"``.
        name: The setting.
        because: The option that decides so.
    """

    part: Literal["model", "train"]
    name: str
    because: str


def check_read(config: Config) -> None:
    """Refuses settings that differ from their preset's and that nothing would read.

    Raises:
        ValueError: Naming the settings, their options, and what does not read them.
    """
    unread = list(_unread(config))
    if unread:
        because = unread[0].because
        names = [f"{one.name} (--{one.name.replace('_', '-')})" for one in unread if one.because == because]
        verb = "is" if len(names) == 1 else "are"
        raise ValueError(f"{', '.join(names)} {verb} not read with {because}: leave it out.")


def without_unread(config: Config) -> tuple[Config, frozenset[str]]:
    """Puts settings that a run would not read back to those of its preset.

    Args:
        config: The settings.

    Returns:
        The settings, and the command line's names of those that were put back, such as ``--num-experts``.
    """
    preset, unread = _preset(config), list(_unread(config))
    for one in unread:
        own = replace(getattr(config, one.part), **{one.name: getattr(getattr(preset, one.part), one.name)})
        config = replace(config, **{one.part: own})
    return config, frozenset(f"--{one.name.replace('_', '-')}" for one in unread)


def _preset(config: Config) -> Config:
    from recipes.medmoe.presets import PRESETS  # which imports the settings that this module checks

    return PRESETS[config.preset]()


def _unread(config: Config) -> Iterator[Unread]:
    def changed(part: Literal["model", "train"], names: tuple[str, ...], because: str) -> Iterator[Unread]:
        own, kept = getattr(config, part), getattr(preset, part)
        yield from (Unread(part, name, because) for name in names if getattr(own, name) != getattr(kept, name))

    preset, train, branch = _preset(config), config.train, config.model.local_branch
    because = f"--local-branch {branch}"
    if branch != "experts":
        yield from changed("model", _OF_ROUTER, because)
        yield from changed("train", _OF_ROUTER_LOSS, because)
    if branch in ("map", "none"):
        yield from changed("model", _OF_EXPERTS, because)
    if branch == "none":
        yield from changed("model", _OF_REGIONS, because)
        yield from changed("train", _OF_LOCAL_LOSS, because)
    if train.global_targets == "findings":
        names = ("global_directions", "image_to_text_weight", "gather")
        yield from changed("train", names, "--global-targets findings")
    else:
        yield from changed("train", ("findings",), f"--global-targets {train.global_targets}")
    if train.global_directions != "both":
        yield from changed("train", ("image_to_text_weight",), f"--global-directions {train.global_directions}")
