"""Image encoders: any timm model, as a sequence of patch tokens."""

from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from recipes.shared.encoders.open_clip.image import image_tower as clip_image_tower
from recipes.shared.encoders.open_clip.image import load_image as load_clip_image
from recipes.shared.encoders.open_clip.whole import is_open_clip
from recipes.shared.encoders.spec import OPEN_CLIP, ImageEncoderSpec
from recipes.shared.encoders.timm_models import HUB, blank_pass, build, checkpoint_model


class ImageTokens(NamedTuple):
    """Output of an image encoder.

    Attributes:
        patches: ``(B, M, D)``, row by row.
        summary: ``(B, D)``: the class token where the architecture has one, else the mean of the patches.
        grid: Rows and columns of the patches.
    """

    patches: Tensor
    summary: Tensor
    grid: tuple[int, int]


class ImageEncoder(nn.Module):
    """A timm model without its head.

    Args:
        model: The model.
        spec: What it was built from.

    Attributes:
        dim: Width of the patches.
        grid: Rows and columns of the patches.
        projection: ``(dim, D)``, the trained map of the summary into a space that it shares with texts; ``None`` of a
            model that came with none.

    Raises:
        ValueError: If the model does not take images of the spec's size, or gives no single map of features.
    """

    def __init__(self, model: nn.Module, spec: ImageEncoderSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.projection: Tensor | None = None
        self.dim: int = model.num_features
        self.grid: tuple[int, int] = blank_pass(self, spec).grid

    @classmethod
    def from_spec(cls, spec: ImageEncoderSpec) -> "ImageEncoder":
        """Builds the architecture with random weights."""
        if spec.library == OPEN_CLIP:
            return cls(clip_image_tower(spec), spec)
        return cls(timm.create_model(spec.architecture, pretrained=False, num_classes=0, **spec.options), spec)

    def checkpoint_activations(self) -> None:
        """Computes activations of the blocks again in backward instead of keeping them.

        Raises:
            ValueError: If the architecture cannot.
        """
        checkpoint_model(self.model, self.spec.architecture)

    def forward(self, images: Tensor) -> ImageTokens:
        """Encodes normalised images ``(B, 3, size, size)``."""
        features = self.model.forward_features(images)
        if not isinstance(features, Tensor):
            raise ValueError(f"it gives a {type(features).__name__} instead of one map or sequence of features")
        if features.ndim == 4:
            if features.shape[-1] == self.dim and features.shape[1] != self.dim:  # (B, h, w, D), as Swin gives
                features = features.permute(0, 3, 1, 2)
            grid = (features.shape[2], features.shape[3])
            patches = features.flatten(2).mT
            return ImageTokens(patches, patches.mean(1), grid)
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        patches = features[:, prefix:]
        side = round(patches.shape[1] ** 0.5)
        summary = features[:, 0] if prefix else patches.mean(1)
        return ImageTokens(patches, summary, (side, patches.shape[1] // side))


def load_image_encoder(name: str, size: int, *, weights: str = HUB, output_stride: int | None = None) -> ImageEncoder:
    """Loads an encoder by timm name, from a local folder, or from a hub repository.

    Args:
        name: A timm name (``vit_base_patch16_224``), a folder saved by ``timm.models.save_for_hf``,
            ``hf-hub:owner/name``, or ``open_clip:...`` (:mod:`recipes.shared.encoders.open_clip`).
        size: Side of the square input, in pixels.
        weights: ``"hub"`` for the pretrained weights of ``name``, ``"random"``, or the path of a file with a
            state dict (:func:`~recipes.shared.encoders.weights.load_weights_file` lists the layouts). A folder
            brings its own weights.
        output_stride: Requested pixels per patch (8, 16 or 32); ignored by architectures that allow no choice.

    Raises:
        ValueError: If timm knows no such model, it does not take images of this size, ``weights`` is
            neither word nor an existing file, or the file does not fit.
        RuntimeError: If the weights cannot be loaded; the message names a remedy.
    """
    if is_open_clip(name):
        tower, spec, projection = load_clip_image(name, size, weights=weights)
        encoder = ImageEncoder(tower, spec)
        encoder.projection = projection
        return encoder
    optional = {"img_size": size, "output_stride": output_stride}
    model, spec = build(name, size, weights=weights, optional_kwargs=optional, fixed_kwargs={"num_classes": 0})
    return ImageEncoder(model, spec)


def normalisation(spec: ImageEncoderSpec) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation as ``(3, 1, 1)`` tensors."""
    return torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
