"""Checks of the inputs of the fusion layers; they read shapes, dtypes and devices only."""

from collections.abc import Sequence

from torch import Tensor, nn

from moekit.checks import check_fits_layer, check_floating, check_rank, check_width


def check_tokens(name: str, tokens: Tensor, width: int | None = None) -> None:
    """Raises ``ValueError`` unless ``tokens`` is floating and of shape (batch, sequence, ``width``)."""
    check_rank(name, tokens, 3, f"batch, sequence, {'width' if width is None else width}")
    if width is not None:
        check_width(name, tokens, width)
    check_floating(name, tokens)


def check_maps(maps: Sequence[Tensor], channels: Sequence[int], layer: nn.Module | None = None) -> None:
    """Raises ``ValueError`` unless ``maps`` are a pyramid of ``channels``, for the weights of ``layer`` if given."""
    if isinstance(maps, Tensor):  # which would unbind into samples
        raise ValueError(
            f"maps must be a sequence of {len(channels)} feature maps, got one tensor of shape {tuple(maps.shape)}: "
            "pass a list."
        )
    if len(maps) != len(channels):
        raise ValueError(f"maps must be {len(channels)} feature maps of {tuple(channels)} channels, got {len(maps)}.")
    for index, (x, width) in enumerate(zip(maps, channels, strict=True)):
        name = f"maps[{index}]"
        check_rank(name, x, 4, f"batch, {width}, height, width")
        if x.shape[1] != width:
            raise ValueError(f"{name} must have {width} channels, got shape {tuple(x.shape)}.")
        if x.shape[0] != maps[0].shape[0]:
            raise ValueError(f"{name} must have the batch size of maps[0], {maps[0].shape[0]}, got {x.shape[0]}.")
        if 0 in x.shape[2:]:
            raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(x.shape)}.")
        check_floating(name, x)
        if layer is not None:
            check_fits_layer(name, x, layer)
