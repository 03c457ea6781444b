"""What the model makes of images and texts.

Shape letters: B pairs, L scales, C_l channels of a scale, h and w the aligned map, N words, D the common width.
"""

from typing import NamedTuple

from torch import Tensor

from moekit import RouterStats, Routing
from recipes.medmoe.config import ModelConfig


class ImageFeatures(NamedTuple):
    """What the image encoder makes of images.

    Attributes:
        maps: One ``(B, C_l, H_l, W_l)`` per scale, fine to coarse.
        pooled: ``(B, C_L)``, the coarsest map in one vector.
        embedding: ``(B, D)``, of norm 1: v_g.
        visible: ``(B, h, w)``, False for regions of padding; None where padding counts.
        scale: ``()``, what multiplies cosines with texts, where it is trained.
    """

    maps: tuple[Tensor, ...]
    pooled: Tensor
    embedding: Tensor
    visible: Tensor | None = None
    scale: Tensor | None = None


class TextFeatures(NamedTuple):
    """What the text encoder makes of texts.

    Attributes:
        words: ``(B, N, D)``.
        mask: ``(B, N)``, True for words of the text.
        embedding: ``(B, D)``, of norm 1: t_g.
        pooled: ``(B, D_t)``, the encoder's own vector of the text.
    """

    words: Tensor
    mask: Tensor
    embedding: Tensor
    pooled: Tensor


class LocalFeatures(NamedTuple):
    """What the local branch makes of images: the chosen experts, or what stands in their place.

    Attributes:
        regions: ``(B, D, h, w)``.
        routing: One row per image; ``None`` without experts to choose from.
        stats: What the sparse layer counted; ``None`` likewise.
        scale_weights: ``(B, L, h, w)``, β of each image's own expert over the scales that it reads; on request.
        visible: Of :class:`ImageFeatures`.
        temperature: ``()``, the first temperature where it is trained.
    """

    regions: Tensor
    routing: Routing | None
    stats: RouterStats | None
    scale_weights: Tensor | None = None
    visible: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """Returns the regions as a sequence, ``(B, h·w, D)``."""
        return self.regions.flatten(2).mT

    @property
    def region_mask(self) -> Tensor | None:
        """Returns which of the places count, ``(B, h·w)``; None where all do."""
        return None if self.visible is None else self.visible.flatten(1)

    def first_temperature(self, config: ModelConfig) -> float | Tensor:
        """Returns the temperature of the attention: the trained one, or that of the settings."""
        return config.temperatures[0] if self.temperature is None else self.temperature
