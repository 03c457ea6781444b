"""Image encoders as a pyramid: feature maps of several scales from any timm model that has them."""

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.timm_models import HUB, blank_pass, build, checkpoint_model


class PyramidEncoder(nn.Module):
    """A timm model made by ``features_only``: maps of several scales, fine to coarse.

    Args:
        model: The feature extractor.
        spec: What it was built from.

    Attributes:
        channels: ``C_l`` of each map.
        reductions: Pixels of the image per place of each map, along one side.
        sizes: ``(H_l, W_l)`` of each map at the spec's size.
        dim: Channels of the last, coarsest map.
        spec: What it was built from.

    Raises:
        ValueError: If the model does not take images of the spec's size, or its maps are not what it announces.
    """

    def __init__(self, model: nn.Module, spec: ImageEncoderSpec) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # convolutions and pools are faster, on CPU too
        self.spec = spec
        self.channels: tuple[int, ...] = tuple(model.feature_info.channels())
        self.reductions: tuple[int, ...] = tuple(model.feature_info.reduction())
        self.dim = self.channels[-1]
        self.sizes: tuple[tuple[int, int], ...] = tuple(
            (feature_map.shape[2], feature_map.shape[3]) for feature_map in blank_pass(self, spec)
        )

    @classmethod
    def from_spec(cls, spec: ImageEncoderSpec) -> "PyramidEncoder":
        """Builds the architecture with random weights."""
        return cls(timm.create_model(spec.architecture, pretrained=False, features_only=True, **spec.options), spec)

    def checkpoint_activations(self) -> None:
        """Computes activations again in backward instead of keeping them: block by block, or stage by stage.

        Raises:
            ValueError: If the architecture cannot.
        """
        # The stages' own switch is the finer one: Swin and ConvNeXt have it.
        stages = [module for module in self.model.modules() if getattr(module, "grad_checkpointing", None) is False]
        stages = [module for module in stages if module is not self.model]
        for stage in stages:
            stage.grad_checkpointing = True
        if not stages:
            checkpoint_model(self.model, self.spec.architecture)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encodes normalised images ``(B, 3, size, size)`` into maps ``(B, C_l, H_l, W_l)``."""
        maps = self.model(images.contiguous(memory_format=torch.channels_last))
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":  # as Swin gives them
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        self._check(maps)
        return tuple(maps)

    def _check(self, maps: Sequence[Tensor]) -> None:
        channels = tuple(feature_map.shape[1] for feature_map in maps)
        if channels != self.channels or any(feature_map.ndim != 4 for feature_map in maps):
            shapes = ", ".join(str(tuple(feature_map.shape)) for feature_map in maps)
            raise ValueError(f"it gives maps of the shapes {shapes} where it announces {self.channels} channels")


def load_pyramid_encoder(name: str, size: int, *, weights: str = HUB, scales: int = 4) -> PyramidEncoder:
    """Loads a pyramid by timm name, from a local folder, or from a hub repository.

    Args:
        name: A timm name (``swin_tiny_patch4_window7_224``), a folder saved by ``timm.models.save_for_hf``, or
            ``hf-hub:owner/name``.
        size: Side of the square input, in pixels. Swin and others that are built for one size are built for
            this one, and pretrained weights that depend on it are resized.
        weights: ``"hub"`` for the pretrained weights of ``name``, ``"random"``, or the path of a file with a
            state dict: timm's, Hugging Face's ``SwinModel``, or MedCLIP's checkpoint, whose mean and standard
            deviation the encoder then takes. A folder brings its own weights.
        scales: How many maps to take, the coarsest ones.

    Raises:
        ValueError: If timm knows no such model, it has no such pyramid or does not take images of this size,
            ``weights`` is neither word nor an existing file, or the file does not fit.
        RuntimeError: If the weights cannot be loaded; the message names a remedy.
    """
    if scales < 1:
        raise ValueError(f"scales must be at least 1, got {scales}.")
    # The list, not a tuple: as json gives it back.
    fixed_kwargs = {"features_only": True, "out_indices": list(range(-scales, 0))}
    try:
        model, spec = build(name, size, weights=weights, optional_kwargs={"img_size": size}, fixed_kwargs=fixed_kwargs)
    except (AssertionError, AttributeError, IndexError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"image encoder {name!r} gives no pyramid of {scales} scales ({error}): give another --image-encoder; "
            "Swin, ResNet, ConvNeXt and EfficientNet have four."
        ) from error
    spec.options["out_indices"] = fixed_kwargs["out_indices"]
    return PyramidEncoder(model, spec)
