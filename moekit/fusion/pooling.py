"""Pooling of padded token sequences into one vector for each sample.

All functions take tokens of shape (B, S, D) and a bool mask of shape (B, S), True at real tokens, or
None when all tokens are real. The values of masked tokens never matter, NaN included, and a sample with no
real token gives zeros. None of them reads a value back to the host.

Shape letters: B batch, S sequence, D width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.checks import check_mask, check_same_device
from moekit.fusion.checks import check_tokens


def masked_mean(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B D"]:
    """Averages the real tokens of each sample.

    The sum is taken in float32 (float64 for float64 tokens), so a long sequence in float16 does not overflow.

    Args:
        tokens: Tokens, shape (B, S, D).
        mask: True at real tokens, shape (B, S); None when all are real.

    Returns:
        Means, shape (B, D), in the dtype of ``tokens``; zeros for a sample with no real token.

    Raises:
        ValueError: If the shape, dtype or device of an argument does not fit.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0], [99.0]]])
        >>> masked_mean(tokens, torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    mask = _checked_mask(tokens, mask)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    total = torch.where(mask[..., None], tokens, 0.0).sum(dim=1, dtype=dtype)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (total / count).to(tokens.dtype)


def masked_max(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B D"]:
    """Takes the maximum of each feature over the real tokens of each sample.

    Args:
        tokens: Tokens, shape (B, S, D).
        mask: True at real tokens, shape (B, S); None when all are real.

    Returns:
        Maxima, shape (B, D); zeros for a sample with no real token. Equal maxima share the gradient.

    Raises:
        ValueError: If the shape, dtype or device of an argument does not fit.
    """
    mask = _checked_mask(tokens, mask)
    if tokens.shape[1] == 0:
        return tokens.sum(dim=1)
    maxima = tokens.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
    return torch.where(mask.any(dim=1, keepdim=True), maxima, 0.0)


def first_token(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B D"]:
    """Takes the first real token of each sample, e.g. an encoder's class token.

    Args:
        tokens: Tokens, shape (B, S, D).
        mask: True at real tokens, shape (B, S), padded on either side; None when all are real.

    Returns:
        First real tokens, shape (B, D); zeros for a sample with none.

    Raises:
        ValueError: If the shape, dtype or device of an argument does not fit.
    """
    mask = _checked_mask(tokens, mask)
    if tokens.shape[1] == 0:
        return tokens.sum(dim=1)
    # argmax returns the first of equal maxima.
    return _token_at(tokens, mask, mask.int().argmax(dim=1))


def last_token(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B D"]:
    """Takes the last real token of each sample, which in a causal model depends on all others.

    Args:
        tokens: Tokens, shape (B, S, D).
        mask: True at real tokens, shape (B, S), padded on either side; None when all are real.

    Returns:
        Last real tokens, shape (B, D); zeros for a sample with none.

    Raises:
        ValueError: If the shape, dtype or device of an argument does not fit.
    """
    mask = _checked_mask(tokens, mask)
    if tokens.shape[1] == 0:
        return tokens.sum(dim=1)
    return _token_at(tokens, mask, tokens.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


def _checked_mask(tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None) -> Bool[Tensor, "B S"]:
    check_tokens("tokens", tokens)
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    check_mask("mask", mask, tokens.shape[:2])
    check_same_device("mask", mask, "tokens", tokens)
    return mask


def _token_at(
    tokens: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"], position: Int[Tensor, " B"]
) -> Float[Tensor, "B D"]:
    index = position[:, None, None].expand(-1, 1, tokens.shape[2])
    return torch.where(mask.any(dim=1, keepdim=True), tokens.gather(1, index).squeeze(1), 0.0)
