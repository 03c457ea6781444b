"""Attention over the scales of a feature pyramid, at every location.

Shape letters: B batch, L scales, C_l channels of scale l, D common width, h hidden width of a head, S_l = H_l W_l
locations of scale l, H, W and S = H W size of the output.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_choice, check_positive
from moekit.fusion.checks import check_maps
from moekit.init import layer_in, reset_parameters, reset_xavier
from moekit.settings import SettingsModule

LogitsAt = Literal["own", "aligned"]
LOGITS_AT = ("own", "aligned")
OnScale = Callable[[int, Tensor], Tensor]
"""A function of the index of a scale and its map."""


class CrossScaleOutput(NamedTuple):
    """Result of `CrossScaleAttention`."""

    output: Float[Tensor, "B D H W"]
    """The fused map."""
    weights: Float[Tensor, "B L H W"] | None
    """Weight of every scale at every location, float32 or wider, summing to 1 over L; None unless ``need_weights``."""


class CrossScaleAttention(SettingsModule):
    """Fuses a pyramid of feature maps into one map, with weights of the scales for every location.

        F_l = align(W_l x_l + b_l),    beta = softmax over l of head_l(F_l),    output = sum_l beta_l * F_l

    ``align`` is bilinear in two dimensions (``align_corners=False``) to the size of one of the maps. A head is a 1x1
    convolution to h channels, ReLU, a 1x1 convolution to one; each scale has its own, since its features have
    meanings of their own, and the biases learn the general weight of a scale. The last layer of the heads starts at
    zero, so all scales have equal weights at first; other weights start Xavier-uniform, other biases at zero. Whatever
    stands in ``projections`` and ``heads`` is called, so a wrapper (LoRA, activation checkpointing, FSDP) may replace a
    layer.

    Cost in multiply-adds per sample, with s_l = min(S_l, S) and without the resizing (four for each value):

    | part | formula | Swin-T at 224 px, D = 192, h = 48, ``align_to=1`` |
    |---|---|---:|
    | projections | D * sum_l s_l C_l | 65,028,096 |
    | heads, ``logits_at="own"`` | h (D + 1) * sum_l s_l | 16,795,632 |
    | heads, ``logits_at="aligned"`` | h (D + 1) * L S | 29,051,904 |
    | weighted sum | L S D | 602,112 |

    (C = 96, 192, 384, 768 and S_l = 3136, 784, 196, 49.) With ``align_to=0`` the heads cost 38,584,560 and 116,207,616.
    The smaller size suffices because a projection and bilinear resizing commute: both are linear, and bilinear weights
    sum to 1, so the bias commutes too. A finer map is resized before its projection, a coarser one after it.

    Args:
        channels: Channels of the maps, ``(C_1, ..., C_L)``, as a backbone's ``feature_info.channels()``.
        dim: Common width D.
        align_to: Index of the map that sets the size of the output; negative ones count from the last.
        logits_at: ``"own"`` scores each scale at its own resolution (a scale finer than the output: at that of the
            output, which is cheaper still) and resizes the one-channel map of scores; ``"aligned"`` resizes the
            features and scores these. The same for linear heads; else they differ where a head is not linear.
        hidden_dim: Hidden width h of the heads, ``dim // 4`` by default; 0 for linear heads ``D -> 1``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``channels`` is empty, a width is out of range, ``align_to`` is no index of a map, or
            ``logits_at`` is unknown.

    Reference:
        MedMoE, section 4.3: V_k = sum_l beta_k^(l) F_k^(l) with weights per location from "the expert's
        scale-attention module", whose form is not specified. Chosen here: the heads, the softmax, the size of the
        output, and ``"own"`` as the default. The public release interpolates flattened sequences, mixing positions;
        here rows and columns are resized as such.

    Example:
        >>> fuse = CrossScaleAttention((8, 16, 32), 12)
        >>> maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
        >>> fused = fuse(maps, need_weights=True)
        >>> fused.output.shape, fused.weights.shape
        (torch.Size([2, 12, 8, 8]), torch.Size([2, 3, 8, 8]))
    """

    _checked_settings = frozenset({"align_to", "logits_at"})

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        align_to: int = 1,
        logits_at: LogitsAt = "own",
        hidden_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.dim = dim
        self.align_to = align_to
        self.logits_at: LogitsAt = logits_at
        check_positive("dim", dim)
        self.hidden_dim = max(dim // 4, 1) if hidden_dim is None else hidden_dim
        self._check_settings()

        def convolution(fan_in: int, fan_out: int) -> nn.Conv2d:
            return nn.Conv2d(fan_in, fan_out, 1, device=device, dtype=dtype)

        def head() -> nn.Sequential:
            if self.hidden_dim == 0:
                return nn.Sequential(convolution(dim, 1))
            return nn.Sequential(convolution(dim, self.hidden_dim), nn.ReLU(), convolution(self.hidden_dim, 1))

        self.projections = nn.ModuleList(convolution(width, dim) for width in self.channels)
        self.heads = nn.ModuleList(head() for _ in self.channels)
        self.reset_parameters()
        self._make_read_only("channels", "dim", "hidden_dim")

    def _check_settings(self) -> None:
        if not self.channels:
            raise ValueError("channels must name the channels of at least one map, got none.")
        for index, width in enumerate(self.channels):
            check_positive(f"channels[{index}]", width)
        if self.hidden_dim < 0:
            raise ValueError(f"hidden_dim must be at least 0 (0 for linear heads), got {self.hidden_dim}.")
        check_choice("logits_at", self.logits_at, LOGITS_AT)
        count = len(self.channels)
        if not -count <= self.align_to < count:
            raise ValueError(f"align_to must be the index of one of the {count} maps, got {self.align_to}.")

    def reset_parameters(self) -> None:
        """Draws the projections and heads anew; the last layer of every head becomes zero."""
        for projection, head in zip(self.projections, self.heads, strict=True):
            reset_xavier(projection, nn.Conv2d)
            layers = layer_in(head, nn.Sequential)
            if layers is None:
                reset_parameters(head)
                continue
            for layer in layers:
                reset_xavier(layer, nn.Conv2d)
            last = layer_in(layers[-1], nn.Conv2d)
            if last is not None:
                nn.init.zeros_(last.weight)

    def projection(self, scale: int) -> nn.Conv2d:
        """Returns the projection of a scale."""
        return cast(nn.Conv2d, self.projections[scale])

    def head(self, scale: int) -> list[nn.Conv2d]:
        """Returns the convolutions of a scale's head, between which is a ReLU."""
        return [layer for layer in self.heads[scale].children() if isinstance(layer, nn.Conv2d)]

    def forward(self, maps: Sequence[Float[Tensor, "..."]], *, need_weights: bool = False) -> CrossScaleOutput:
        """Fuses the maps.

        Args:
            maps: One map for each scale, shapes (B, C_l, H_l, W_l), in any order of sizes.
            need_weights: Whether to return the weights of the scales too.

        Returns:
            The fused map (B, D, H, W), and the weights (B, L, H, W) or None.

        Raises:
            ValueError: If the number, shape, dtype or device of the maps does not fit.
        """
        check_maps(maps, self.channels, self.projections[0])
        fused = fuse_scales(
            maps,
            lambda scale, x: self.projections[scale](x),
            lambda scale, x: self.heads[scale](x),
            align_to=self.align_to,
            logits_at=self.logits_at,
        )
        return fused if need_weights else CrossScaleOutput(fused.output, None)

    def extra_repr(self) -> str:
        """Shows the widths and the options."""
        return (
            f"channels={self.channels}, dim={self.dim}, align_to={self.align_to}, "
            f"logits_at={self.logits_at!r}, hidden_dim={self.hidden_dim}"
        )


def fuse_scales(
    maps: Sequence[Tensor], project: OnScale, score: OnScale, *, align_to: int, logits_at: LogitsAt
) -> CrossScaleOutput:
    """Computes `CrossScaleAttention` with any functions that project and score a scale.

    Args:
        maps: One map for each scale, shapes (B, C_l, H_l, W_l).
        project: From scale and map (B, C_l, ...) to (B, D, ...); affine at each location.
        score: From scale and projected map to (B, 1, ...), at each location.
        align_to: See `CrossScaleAttention`.
        logits_at: See `CrossScaleAttention`.
    """
    target = maps[align_to]
    features: list[Tensor] = []
    logits: list[Tensor] = []
    for scale, x in enumerate(maps):
        finer = x.shape[-2] * x.shape[-1] > target.shape[-2] * target.shape[-1]
        projected = project(scale, resize(x, target) if finer else x)
        aligned = resize(projected, target)
        scores = score(scale, aligned if logits_at == "aligned" else projected)
        features.append(aligned)
        logits.append(resize(scores, target))
    joined = torch.cat(logits, dim=1)
    weights = joined.softmax(dim=1, dtype=torch.promote_types(joined.dtype, torch.float32))
    shares = weights.to(features[0].dtype)
    output = shares[:, :1] * features[0]
    for scale, feature in enumerate(features[1:], 1):
        output = torch.addcmul(output, shares[:, scale : scale + 1], feature)
    return CrossScaleOutput(output, weights)


def resize(x: Tensor, reference: Tensor) -> Tensor:
    """Resizes ``x`` to the height and width of ``reference`` bilinearly, in its own dtype under autocast too."""
    if x.shape[-2:] == reference.shape[-2:]:
        return x
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False).to(x.dtype)
