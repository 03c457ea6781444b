"""The two towers of a CLIP of open_clip as encoders of the recipes (extra ``openclip``).

A name is ``open_clip:ARCHITECTURE/TAG`` (``open_clip:ViT-B-32-quickgelu/openai``), ``open_clip:hf-hub:owner/name``, or
``open_clip:FOLDER`` with an ``open_clip_config.json`` and the weights beside it.

Shape letters: B samples, N tokens of a text, D width of a tower.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.shared.encoders.hub import loading
from recipes.shared.encoders.spec import OPEN_CLIP, ImageEncoderSpec
from recipes.shared.extras import require

PREFIX = "open_clip:"
_SAVED = "open_clip_text.json"
_REMEDY = (
    f"Give a folder that holds open_clip_config.json and the weights ({PREFIX}FOLDER), or --image-weights random and "
    "--text-weights random to train from scratch."
)
# What stands in for the tower that is not needed: nothing of it is kept.
_NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
_NO_IMAGE = {"image_size": 8, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64}


class OpenClipImage(nn.Module):
    """An image tower of open_clip with the interface of a timm model: features of the patches, no projection.

    Args:
        visual: A ``VisionTransformer`` or a ``ModifiedResNet``; it loses its projection and its attention pooling.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.is_transformer = hasattr(visual, "ln_post")
        if self.is_transformer and getattr(visual, "attn_pool", None) is None:
            self.num_features: int = visual.conv1.out_channels
            visual.proj = None
        elif hasattr(visual, "attnpool"):
            self.num_features = visual.layer4[-1].conv3.out_channels
            visual.attnpool = nn.Identity()
        else:
            raise ValueError(
                f"image encoder: {type(visual).__name__} of open_clip has a pooling that is not supported; give a "
                "plain ViT or ResNet (--image-encoder)."
            )
        self.num_prefix_tokens = 1 if self.is_transformer else 0
        self.visual = visual

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes activations of the blocks again in backward, or keeps them.

        Raises:
            AttributeError: Of a ResNet, which cannot.
        """
        if not self.is_transformer:
            raise AttributeError("a ResNet of open_clip keeps its activations")
        self.visual.set_grad_checkpointing(enable)

    def forward_features(self, images: Tensor) -> Tensor:
        """Encodes images into ``(B, 1 + M, D)`` tokens, the class token first, or a map ``(B, D, h, w)``."""
        if not self.is_transformer:
            return self.visual.forward_intermediates(images, 1, intermediates_only=True)["image_intermediates"][0]
        output = self.visual.forward_intermediates(
            images,
            1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([output["image_intermediates_prefix"][0], output["image_intermediates"][0]], dim=1)


class OpenClipTokenizer:
    """CLIP's tokenizer with as much of the interface of a transformers tokenizer as the recipes use.

    Args:
        context_length: Longest text, in tokens.
    """

    pad_token_id, mask_token_id = 0, None

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.simple = require("open_clip", "the tokenizer of CLIP", extra="openclip").SimpleTokenizer()
        self.all_special_ids: list[int] = self.simple.all_special_ids
        self.unk_token_id: int = self.simple.eot_token_id

    def __len__(self) -> int:
        return self.simple.vocab_size

    def __call__(self, text: str, *, truncation: bool = True, max_length: int | None = None) -> dict[str, list[int]]:
        """Returns ``input_ids``, cut to the shorter of ``max_length`` and the context; the last one ends the text."""
        limit = min(max_length or self.context_length, self.context_length) if truncation else None
        ids = [self.simple.sot_token_id, *self.simple.encode(text), self.simple.eot_token_id]
        if limit is not None and len(ids) > limit:
            ids = [*ids[: limit - 1], self.simple.eot_token_id]
        return {"input_ids": ids}

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of each token."""
        return self.simple.encoder


class OpenClipText(nn.Module):
    """A text tower of open_clip with the interface of :class:`~recipes.shared.encoders.text.TextEncoder`.

    Args:
        tower: A ``TextTransformer``; it loses its projection.
        config: What it is built from: ``text_cfg`` and ``quick_gelu``.
    """

    def __init__(self, tower: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        tower.text_projection = None
        self.model = tower
        self.config = config
        self.projection: Tensor | None = None
        self.dim: int = tower.width
        self.tokenizer = OpenClipTokenizer(tower.context_length)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int] = (-1,)) -> Tensor:
        """Encodes ``(B, N)`` token ids into ``(B, N, D)`` states.

        Padding on the right is seen by no token before it, so the mask of a causal tower is not needed.

        Raises:
            ValueError: If other layers than the last are asked for, or the text is longer than the context.
        """
        if tuple(layers) != (-1,):
            raise ValueError("layers (--text-layers) of a text tower of open_clip must be -1, the last one.")
        length = input_ids.shape[1]
        if length > self.model.context_length:
            raise ValueError(
                f"a text of {length} tokens is longer than the context of {self.model.context_length} (--text-tokens)."
            )
        states = self.model.token_embedding(input_ids) + self.model.positional_embedding[:length]
        mask = None if self.model.attn_mask is None else self.model.attn_mask[:length, :length]
        return self.model.ln_final(self.model.transformer(states, attn_mask=mask))

    def checkpoint_activations(self) -> None:
        """Computes activations of the layers again in backward instead of keeping them."""
        self.model.set_grad_checkpointing(True)

    def save(self, folder: Path) -> None:
        """Writes what :meth:`from_saved` needs; the vocabulary is that of the package."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SAVED).write_text(json.dumps(self.config) + "\n")

    @classmethod
    def from_saved(cls, folder: Path) -> "OpenClipText":
        """Builds the architecture that :meth:`save` described, with random weights."""
        config = json.loads((folder / _SAVED).read_text())
        return cls(_text_tower(config), config)


def is_open_clip(name: str) -> bool:
    """Tells whether a name is one of this module."""
    return name.startswith(PREFIX)


def was_saved(folder: Path) -> bool:
    """Tells whether :meth:`OpenClipText.save` wrote a folder."""
    return (folder / _SAVED).is_file()


def load_image(name: str, size: int, *, weights: str) -> tuple[nn.Module, ImageEncoderSpec, Tensor | None]:
    """Loads an image tower.

    Args:
        name: As the module says.
        size: Side of the square input, in pixels.
        weights: ``"hub"`` for those of ``name``, or ``"random"``.

    Returns:
        The tower, the spec that :func:`image_tower` builds it from again, and the trained projection ``(D, D_common)``
        into the space of its CLIP, where there is one matrix and the weights are not random.

    Raises:
        RuntimeError: If it cannot be loaded; the message names a remedy.
        ValueError: If ``weights`` is another word.
    """
    if weights not in ("hub", "random"):
        raise ValueError(f'weights of {name!r} must be "hub" or "random", got {weights!r} (--image-weights).')
    model, config = load_whole(name, weights=weights, size=size, what="image encoder")
    visual = model.visual
    preprocess = getattr(visual, "preprocess_cfg", {})
    vision = {**config["vision_cfg"], "image_size": size}
    vision.pop("timm_model_pretrained", None)
    options = {"embed_dim": config["embed_dim"], "vision_cfg": vision, "quick_gelu": config.get("quick_gelu", False)}
    spec = ImageEncoderSpec(
        name.removeprefix(PREFIX).rpartition(":")[2],
        size,
        tuple(preprocess.get("mean", (0.5, 0.5, 0.5))),
        tuple(preprocess.get("std", (0.5, 0.5, 0.5))),
        options,
        OPEN_CLIP,
    )
    projection = getattr(visual, "proj", None)
    if weights == "random" or not isinstance(projection, Tensor):
        return _as_timm(visual), spec, None
    return _as_timm(visual), spec, projection.detach().clone()


def image_tower(spec: ImageEncoderSpec) -> nn.Module:
    """Builds the image tower of a spec, with random weights and without reading any file."""
    library = require("open_clip", "an image encoder of open_clip", extra="openclip")
    vision = {**spec.options["vision_cfg"], "timm_model_pretrained": False}
    return _as_timm(
        library.CLIP(spec.options["embed_dim"], vision, dict(_NO_TEXT), quick_gelu=spec.options["quick_gelu"]).visual
    )


def load_text(name: str, *, weights: str) -> tuple[nn.Module, Any, Tensor | None]:
    """Loads a text tower.

    Args:
        name: As the module says.
        weights: ``"hub"`` for those of ``name``, or ``"random"``.

    Returns:
        An :class:`OpenClipText`, or a transformers model where the CLIP has one; that model's tokenizer, else ``None``;
        and the trained projection, as for :func:`load_image`.

    Raises:
        RuntimeError: If it cannot be loaded; the message names a remedy.
    """
    model, config = load_whole(name, weights=weights, what="text encoder")
    library = require("open_clip", f"text encoder {name!r}", extra="openclip")
    text = getattr(model, "text", model)
    if config["text_cfg"].get("hf_model_name"):
        with loading(f"the tokenizer of {name!r}", _REMEDY):
            tokenizer = library.get_tokenizer(library_name(name)[0]).tokenizer
        projection = text.proj.weight.T if isinstance(text.proj, nn.Linear) else None
        tower: nn.Module = text.transformer
    else:
        own = {"text_cfg": config["text_cfg"], "quick_gelu": config.get("quick_gelu", False)}
        plain = _text_tower(own)
        plain.text_projection = None
        names = plain.state_dict().keys()
        plain.load_state_dict({name: value for name, value in text.state_dict().items() if name in names})
        projection = text.text_projection if isinstance(text.text_projection, Tensor) else None
        tower, tokenizer = OpenClipText(plain, own), None
    return tower, tokenizer, None if projection is None or weights == "random" else projection.detach().clone()


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
    remedy: str = _REMEDY,
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a whole model of open_clip.

    Args:
        name: As the module says.
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


def _as_timm(visual: nn.Module) -> nn.Module:
    """Returns a tower with the interface of a timm model; some towers hold one."""
    return visual.trunk if hasattr(visual, "trunk") else OpenClipImage(visual)


def _text_tower(config: dict[str, Any]) -> nn.Module:
    library = require("open_clip", "a text encoder of open_clip", extra="openclip")
    whole = library.CustomTextCLIP(8, dict(_NO_IMAGE), dict(config["text_cfg"]), quick_gelu=config["quick_gelu"])
    return whole.text
