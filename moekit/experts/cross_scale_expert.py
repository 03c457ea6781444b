"""One convolutional expert over feature pyramids."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_choice, check_positive
from moekit.fusion.cross_scale import CrossScaleAttention, LogitsAt
from moekit.init import layer_in, reset_parameters

Norm = Literal["batch", "group"]
NORMS = ("batch", "group")


class CrossScaleExpert(nn.Module):
    """Cross-scale attention, then ``depth`` times convolution, normalisation, ReLU: one expert of MedMoE.

    Batch normalisation in training takes the statistics of the samples it is given: of one sample its locations,
    and of a single value per channel (one sample, a 1x1 map), which has no spread, the running statistics instead;
    these then stay as they are. Whatever stands in ``attention``, ``convolutions`` and ``norms`` is called, so a
    wrapper may replace a layer.

    Args:
        channels: See :class:`~moekit.fusion.CrossScaleAttention`; so are ``align_to``, ``logits_at``, ``hidden_dim``.
        dim: Width of the output, ``D``.
        depth: Number of convolutions.
        norm: ``"batch"`` or ``"group"``.
        groups: Groups of ``"group"``; the greatest divisor that ``dim`` has in common with 32 by default.
        align_to: Index of the map that sets the size of the output.
        logits_at: Where the scales are scored.
        hidden_dim: Hidden width of the heads that score.
        kernel_size: Height and width of the convolutions, odd. They have no bias, the normalisation does.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or ``groups`` does not divide ``dim`` or comes with ``"batch"``.

    Reference:
        MedMoE, section 4.3; "3-layer convolutional modules with BatchNorm and ReLU activations" among the
        implementation details. Kernel size, order and width are chosen here. The public release has 1x1 convolutions
        here.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        depth: int = 3,
        norm: Norm = "batch",
        groups: int | None = None,
        align_to: int = 1,
        logits_at: LogitsAt = "own",
        hidden_dim: int | None = None,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("depth", depth)
        check_choice("norm", norm, NORMS)
        self.attention = CrossScaleAttention(
            channels, dim, align_to=align_to, logits_at=logits_at, hidden_dim=hidden_dim, device=device, dtype=dtype
        )
        count = _groups(norm, groups, dim)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}.")

        def convolution() -> nn.Conv2d:
            padding = kernel_size // 2
            return nn.Conv2d(dim, dim, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)

        def normalisation() -> nn.Module:
            if norm == "batch":
                return BatchNorm(dim, device=device, dtype=dtype)
            return GroupNorm(count, dim, device=device, dtype=dtype)

        self.convolutions = nn.ModuleList(convolution() for _ in range(depth))
        self.norms = nn.ModuleList(normalisation() for _ in range(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew (convolutions from Kaiming's normal) and resets the running statistics."""
        reset_parameters(self.attention)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            layer = layer_in(convolution, nn.Conv2d)
            if layer is None:
                reset_parameters(convolution)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            reset_parameters(norm)

    def forward(
        self, maps: Sequence[Float[Tensor, "..."]], *, scale_weights: bool = False
    ) -> Float[Tensor, "B D H W"] | Float[Tensor, "B L H W"]:
        """Computes the map of all samples.

        Args:
            maps: One map for each scale, ``(B, C_l, H_l, W_l)``.
            scale_weights: Whether to return the weights of the scales instead.

        Returns:
            The map ``(B, D, H, W)``, of the size of ``maps[align_to]``; or the weights ``(B, L, H, W)``.

        Raises:
            ValueError: If the maps do not fit; see :class:`~moekit.fusion.CrossScaleAttention`.
        """
        if scale_weights:
            return self.attention(maps, need_weights=True).weights
        x = self.attention(maps).output
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return x


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a single value per channel, which torch's own refuses in training."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises; by the running statistics where the batch has no spread."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that takes a single value per group, which torch's own refuses."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises, in the dtype of ``input`` under autocast too."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps).to(input.dtype)


def _groups(norm: Norm, groups: int | None, dim: int) -> int:
    if norm == "batch" and groups is not None:
        raise ValueError(f"groups={groups} is for norm='group', got norm='batch': leave it out.")
    count = math.gcd(32, dim) if groups is None else groups
    if count < 1 or dim % count != 0:
        raise ValueError(f"groups must divide dim={dim}, got {count}.")
    return count
