"""Image encoders: any timm model, as a sequence of patch tokens."""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from recipes.shared.encoders.hub import loading

RANDOM = "random"
HUB = "hub"


@dataclass(frozen=True)
class ImageEncoderSpec:
    """All that is needed to build an encoder again without its weights.

    Attributes:
        architecture: timm's name.
        size: Side of the square input, in pixels.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divides them then.
        options: Further arguments of ``timm.create_model``.
    """

    architecture: str
    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageEncoderSpec":
        """From what :meth:`to_json` gave."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


class ImageTokens(NamedTuple):
    """What an image encoder sees.

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

    Raises:
        ValueError: If the model does not take images of the spec's size, or gives no single map of features.
    """

    def __init__(self, model: nn.Module, spec: ImageEncoderSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.dim: int = model.num_features
        self.grid = self._probe()

    @classmethod
    def from_spec(cls, spec: ImageEncoderSpec) -> "ImageEncoder":
        """Builds the architecture with random weights."""
        return cls(timm.create_model(spec.architecture, pretrained=False, num_classes=0, **spec.options), spec)

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

    def _probe(self) -> tuple[int, int]:
        """Runs a blank image to see the grid, for architectures tell it in no common way."""
        size, training = self.spec.size, self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self(torch.zeros(1, 3, size, size)).grid
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"image encoder {self.spec.architecture!r} cannot be used at {size} x {size} pixels ({error}): "
                "give another --image-size or --image-encoder."
            ) from error
        finally:
            self.model.train(training)


def load_image_encoder(name: str, size: int, *, weights: str = HUB, output_stride: int | None = None) -> ImageEncoder:
    """Loads an encoder by timm name, from a local folder, or from a hub repository.

    Args:
        name: A timm name (``vit_base_patch16_224``), a folder saved by ``timm.models.save_for_hf``, or
            ``hf-hub:owner/name``.
        size: Side of the square input, in pixels.
        weights: ``"hub"`` for the pretrained weights of ``name``, ``"random"``, or the path of a file with a
            state dict. A folder brings its own weights.
        output_stride: Pixels per patch wished for (8, 16 or 32). Architectures that allow no choice keep theirs.

    Raises:
        ValueError: If timm knows no such model, it does not take images of this size, or ``weights`` is
            neither word nor an existing file.
        RuntimeError: If the weights cannot be loaded; the message says what to do.
    """
    source = f"local-dir:{Path(name).resolve()}" if Path(name).is_dir() else name
    if weights not in (HUB, RANDOM) and not Path(weights).is_file():
        raise ValueError(f'weights must be "hub", "random" or an existing file, got {weights!r}.')
    if ":" not in source and not timm.is_model(source.split(".")[0]):
        raise ValueError(
            f"image encoder {name!r} is no timm model and no local folder. timm.list_models() lists the names; "
            "a folder must hold the config.json that timm.models.save_for_hf writes."
        )
    remedy = (
        "Give --image-encoder a local folder (timm.models.save_for_hf writes one), or --image-weights a file with "
        "the weights, or --image-weights random to train from scratch."
    )
    file = weights if weights not in (HUB, RANDOM) else ""
    with loading(f"image encoder {name!r}", remedy):
        wishes = {"img_size": size, "output_stride": output_stride}
        model, used = _create(source, wishes, pretrained=weights == HUB, checkpoint_path=file)
    cfg = model.pretrained_cfg
    spec = ImageEncoderSpec(cfg["architecture"], size, tuple(cfg["mean"]), tuple(cfg["std"]), used)
    return ImageEncoder(model, spec)


def _create(source: str, wishes: dict[str, Any], **how: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a model with those wishes that its architecture knows; returns it and them.

    Only some architectures are built for an input size (ViT, Swin) or let one choose a stride (ResNet,
    ConvNeXt). timm has no list of which; the constructors of the others refuse the argument.
    """
    names = [name for name, value in wishes.items() if value is not None]
    for count in range(len(names), -1, -1):
        for chosen in combinations(names, count):
            options = {name: wishes[name] for name in chosen}
            try:
                return timm.create_model(source, num_classes=0, **options, **how), options
            except (TypeError, AssertionError) as error:
                # An assertion is how some say that they have one stride only.
                refused = isinstance(error, AssertionError) or any(name in str(error) for name in chosen)
                if not chosen or not refused:
                    raise
    raise AssertionError("unreachable: without wishes a model is returned or an error raised")


def normalisation(spec: ImageEncoderSpec) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as ``(3, 1, 1)`` tensors."""
    return torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
