"""Volumes as streams of tokens: each slice through the image encoder, with a position of its own.

Shape letters: B studies, S slices, M patches of a slice, D the encoder's width, d the common width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moekit import masked_mean
from recipes.medvlmoe.modalities import fill_missing
from recipes.shared.encoders.image import ImageTokens


def encode_slices(encoder: nn.Module, volumes: Tensor, mask: Tensor) -> ImageTokens:
    """Encodes every slice; what lies in the slot of a missing one changes nothing.

    Args:
        encoder: Of images ``(N, 3, size, size)``, to :class:`~recipes.shared.encoders.image.ImageTokens`.
        volumes: ``(B, S, 3, size, size)``.
        mask: ``(B, S)``, True for slices.

    Returns:
        ``patches (B, S, M, D)`` and ``summary (B, S, D)``; those of missing slices mean nothing.
    """
    encoded = encoder(fill_missing(volumes.flatten(0, 1), mask.flatten()))
    patches, summary = (each.unflatten(0, mask.shape) for each in (encoded.patches, encoded.summary))
    return ImageTokens(patches, summary, encoded.grid)


class SliceStream(nn.Module):
    """The tokens of a volume in the common space: one for each slice, or one for each patch of each slice.

    Args:
        slices: ``S``.
        dim: ``d``.
        patches: Whether each patch is a token.
    """

    def __init__(self, slices: int, dim: int, *, patches: bool) -> None:
        super().__init__()
        self.patches = patches
        self.position = nn.Parameter(torch.zeros(1, slices, 1, dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(
        self, encoded: ImageTokens, mask: Tensor, projection: nn.Module, patch_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projects, adds positions and flattens.

        Args:
            encoded: Of :func:`encode_slices`.
            mask: ``(B, S)``, True for slices.
            projection: From ``D`` to ``d``.
            patch_position: ``(1, M, d)``, the position of a patch in its slice.

        Returns:
            Tokens ``(B, N, d)`` in the order of the slices, ``N`` being ``S`` or ``S * M``, and their mask ``(B, N)``.
        """
        if self.patches:
            tokens = projection(encoded.patches) + patch_position.unsqueeze(1)
        else:
            tokens = projection(encoded.summary).unsqueeze(2) + patch_position.mean(1).view(1, 1, 1, -1)
        tokens = tokens + self.position
        return tokens.flatten(1, 2), mask.unsqueeze(-1).expand(tokens.shape[:3]).flatten(1)


def mean_of_slices(encoded: ImageTokens, mask: Tensor) -> Tensor:
    """Returns the mean summary of the slices of each volume, ``(B, D)``; zero without any."""
    return masked_mean(encoded.summary, mask)


def stack_volumes(volumes: Sequence[Tensor | None], size: int, slices: int) -> tuple[Tensor, Tensor]:
    """Pads volumes with missing slices.

    Args:
        volumes: Each ``(n, 3, size, size)`` with at most ``slices`` slices, or ``None`` for a study without.
        size: Side of the slices.
        slices: ``S``.

    Returns:
        ``(B, S, 3, size, size)`` and the mask ``(B, S)``, True for slices.
    """
    stacked = torch.zeros(len(volumes), slices, 3, size, size)
    mask = torch.zeros(len(volumes), slices, dtype=torch.bool)
    for row, volume in enumerate(volumes):
        if volume is not None:
            stacked[row, : len(volume)] = volume
            mask[row, : len(volume)] = True
    return stacked, mask
