"""The image tower of a CLIP of open_clip."""

import torch
from torch import Tensor, nn

from recipes.shared.encoders.open_clip.whole import PREFIX, load_whole
from recipes.shared.encoders.spec import OPEN_CLIP, ImageEncoderSpec
from recipes.shared.extras import require

# What stands in for the text tower: nothing of it is kept.
_NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


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


def load_image(name: str, size: int, *, weights: str) -> tuple[nn.Module, ImageEncoderSpec, Tensor | None]:
    """Loads an image tower.

    Args:
        name: As the package says.
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


def _as_timm(visual: nn.Module) -> nn.Module:
    """Returns a tower with the interface of a timm model; some towers hold one."""
    return visual.trunk if hasattr(visual, "trunk") else OpenClipImage(visual)
