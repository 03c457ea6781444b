"""Whole models of open_clip, by their name."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from recipes.shared.encoders.hub import loading
from recipes.shared.extras import require

PREFIX = "open_clip:"
REMEDY = (
    f"Give a folder that holds open_clip_config.json and the weights ({PREFIX}FOLDER), or --image-weights random and "
    "--text-weights random to train from scratch."
)


def is_open_clip(name: str) -> bool:
    """Tells whether a name is one of this package."""
    return name.startswith(PREFIX)


def library_name(name: str) -> tuple[str, str | None]:
    """Returns what open_clip calls a model, and the tag of its weights."""
    rest = name.removeprefix(PREFIX).removeprefix("local-dir:")
    if Path(rest).is_dir():
        return f"local-dir:{Path(rest).resolve()}", None
    if rest.startswith("hf-hub:"):
        return rest, None
    architecture, _, tag = rest.partition("/")
    return architecture, tag or None


def load_whole(
    name: str,
    *,
    weights: str = "hub",
    size: int | None = None,
    what: str = "model",
    text_tower: Path | None = None,
    remedy: str = REMEDY,
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a whole model of open_clip.

    Args:
        name: As the package says.
        weights: ``"hub"`` for those of ``name``, or ``"random"``.
        size: Side of the square input, in pixels; the model's own by default.
        what: What is being loaded, for errors.
        text_tower: Folder with the ``config.json`` of a text tower of transformers, instead of the repository of a hub
            that the model names.
        remedy: What an error says to do.

    Returns:
        The model, and its configuration.

    Raises:
        RuntimeError: If it cannot be loaded; the message names the remedy.
        ValueError: If there is no such architecture, or weights are missing or unexpected; the message names some.
    """
    library = require("open_clip", f"{what} {name!r}", extra="openclip")
    source, tag = library_name(name)
    if ":" not in source and source not in library.list_models():
        raise ValueError(
            f"{what} {name!r}: open_clip has no architecture {source!r} and there is no such folder. "
            "open_clip.list_models() lists the names."
        )
    if ":" not in source and tag is None and weights == "hub":
        raise ValueError(
            f"{what} {name!r}: name the weights too, as in {PREFIX}{source}/TAG; open_clip.list_pretrained() lists "
            "them."
        )
    with loading(f"{what} {name!r}", remedy):
        config = _config(library, source)
        own: dict[str, Any] = {}
        if text_tower is not None:
            if not config["text_cfg"].get("hf_model_name"):
                raise ValueError(f"{what} {name!r} has a text tower of its own: leave out --text-tower.")
            own["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(text_tower), "hf_model_pretrained": False}
        try:
            model = library.create_model(
                source,
                pretrained=tag if weights == "hub" else None,
                load_weights=weights == "hub",
                require_pretrained=weights == "hub",
                pretrained_text=False,
                force_image_size=size,
                **own,
            )
        except RuntimeError as error:
            if "state_dict" in str(error):
                lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
                raise ValueError(f"{what} {name!r} does not hold the weights of its configuration: {lines}") from error
            # what open_clip makes of a failed download, or of missing weights
            raise OSError(str(error)) from error
    return model, config


def _config(library: Any, source: str) -> dict[str, Any]:
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        path = Path(place) / "open_clip_config.json"
    elif kind == "hf-hub":
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(place, "open_clip_config.json"))
    else:
        return dict(library.get_model_config(source))
    return dict(json.loads(path.read_text())["model_cfg"])
