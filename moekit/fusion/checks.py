"""Checks of the tokens that the fusion layers get; they read shapes, dtypes and devices only."""

from torch import Tensor

from moekit.checks import check_floating, check_rank, check_width


def check_tokens(name: str, tokens: Tensor, width: int | None = None) -> None:
    """Raises ``ValueError`` unless ``tokens`` is floating and of shape (batch, sequence, ``width``)."""
    check_rank(name, tokens, 3, f"batch, sequence, {'width' if width is None else width}")
    if width is not None:
        check_width(name, tokens, width)
    check_floating(name, tokens)
