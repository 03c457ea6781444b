"""Cross-attention in both directions between two streams of tokens.

Shape letters: B batch, M left tokens, N right tokens, L and R input widths of the left and right tokens,
D common width, H heads, S either of M and N, W either of L and R.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moekit.checks import check_fits_layer, check_mask, check_positive, check_same_device, check_same_dtype
from moekit.fusion.attention import AttentionFunction, sdpa_attention, weighted_attention
from moekit.fusion.checks import check_tokens
from moekit.fusion.projections import ProjectedTokens, TokenProjections
from moekit.init import reset_parameters, reset_xavier
from moekit.settings import SettingsModule


class CrossAttentionOutput(NamedTuple):
    """Result of `BidirectionalCrossAttention`."""

    left: Float[Tensor, "B M D"]
    """Attended values of the left tokens, from the right stream; the paper's F_v when left is vision."""
    right: Float[Tensor, "B N D"]
    """Attended values of the right tokens, from the left stream; the paper's F_t when right is text."""
    left_weights: Float[Tensor, "B H M N"] | None
    """Weights of left queries on right keys, or None unless ``need_weights``."""
    right_weights: Float[Tensor, "B H N M"] | None
    """Weights of right queries on left keys, or None unless ``need_weights``."""


class BidirectionalCrossAttention(SettingsModule):
    """Cross-attention of left tokens over right tokens and of right tokens over left ones.

        F_l = softmax(z_l W_Q (z_r W_K)^T / sqrt(d)) z_r W_V
        F_r = softmax(z_r W_Q (z_l W_K)^T / sqrt(d)) z_l W_V

    with d = D / H the width of one head. Residual connections and normalisation are left to the caller: the
    paper has neither, and their place differs between models.

    A masked token has no influence, even when it holds NaN. Three kinds of output are exactly zero,
    with zero gradient: those of masked queries, those of a sample whose other stream has no real token,
    and the weights of both.

    Weights start Xavier-uniform and biases at zero, as in `torch.nn.MultiheadAttention`. Whatever stands in the slots
    of projections is called, so a wrapper (LoRA, activation checkpointing, FSDP) may replace one.

    Args:
        dim: Common width D of queries, keys, values and outputs.
        left_dim: Width of the left tokens; ``dim`` by default.
        right_dim: Width of the right tokens; ``dim`` by default.
        num_heads: Number of heads H, a divisor of ``dim``.
        tie_projections: Whether to use one W_Q, W_K and W_V for both streams, as the paper prints it. Both streams
            must then have the same width. The output projections stay separate.
        output_projection: Whether to apply a linear map of D to D, one for each direction, to the concatenated heads.
        bias: Whether all projections add a bias.
        dropout: Probability of dropping an attention weight, in [0, 1); in training only.
        attention: Function that computes softmax attention, see `AttentionFunction`.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a width or ``num_heads`` is not positive, ``num_heads`` does not divide ``dim``,
            ``dropout`` lies outside [0, 1), or projections are tied over streams of unequal widths.

    Reference:
        MedVLMoE, section 3.3. The printed form is ``num_heads=1, tie_projections=True,
        output_projection=False, bias=False`` on tokens already projected to D. Deviations by default:
        several heads, separate projections for each stream, an output projection, biases, and all
        tokens as keys (with the class token alone, the softmax over one key is 1 and the map linear).

    Example:
        >>> fuse = BidirectionalCrossAttention(64, left_dim=48, right_dim=32, num_heads=4)
        >>> patches, words = torch.randn(2, 9, 48), torch.randn(2, 5, 32)
        >>> is_word = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
        >>> fused = fuse(patches, words, right_mask=is_word)
        >>> fused.left.shape, fused.right.shape
        (torch.Size([2, 9, 64]), torch.Size([2, 5, 64]))
        >>> fused.right[1, 2:].count_nonzero().item()
        0
    """

    _checked_settings = frozenset({"dropout"})

    def __init__(
        self,
        dim: int,
        *,
        left_dim: int | None = None,
        right_dim: int | None = None,
        num_heads: int = 8,
        tie_projections: bool = False,
        output_projection: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        attention: AttentionFunction = sdpa_attention,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.left_dim = dim if left_dim is None else left_dim
        self.right_dim = dim if right_dim is None else right_dim
        self.num_heads = num_heads
        self.tie_projections = tie_projections
        self.dropout = dropout
        self.attention = attention
        self._check_settings()
        self.left_projections = TokenProjections(self.left_dim, dim, num_heads, bias=bias, device=device, dtype=dtype)
        self.right_projections = (
            None
            if tie_projections
            else TokenProjections(self.right_dim, dim, num_heads, bias=bias, device=device, dtype=dtype)
        )
        self.left_output, self.right_output = (
            nn.Linear(dim, dim, bias=bias, device=device, dtype=dtype) if output_projection else None for _ in range(2)
        )
        self.reset_parameters()
        self._make_read_only("dim", "left_dim", "right_dim", "num_heads", "tie_projections")

    def _check_settings(self) -> None:
        for name in ("dim", "left_dim", "right_dim", "num_heads"):
            check_positive(name, getattr(self, name))
        if self.dim % self.num_heads != 0:
            raise ValueError(f"num_heads must divide dim={self.dim}, got {self.num_heads}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}.")
        if self.tie_projections and self.left_dim != self.right_dim:
            raise ValueError(
                "tie_projections=True needs left_dim equal to right_dim, "
                f"got {self.left_dim} and {self.right_dim}; project both streams to one width first."
            )

    def reset_parameters(self) -> None:
        """Draws all projections anew: Xavier-uniform weights, zero biases."""
        for projections in (self.left_projections, self.right_projections):
            if projections is not None:
                reset_parameters(projections)
        for output in (self.left_output, self.right_output):
            if output is not None:
                reset_xavier(output, nn.Linear)

    def forward(
        self,
        left: Float[Tensor, "B M L"],
        right: Float[Tensor, "B N R"],
        *,
        left_mask: Bool[Tensor, "B M"] | None = None,
        right_mask: Bool[Tensor, "B N"] | None = None,
        need_weights: bool = False,
    ) -> CrossAttentionOutput:
        """Computes attention in both directions.

        Args:
            left: Left tokens, shape (B, M, left_dim); M may be 0.
            right: Right tokens, shape (B, N, right_dim); N may be 0.
            left_mask: True at real left tokens, shape (B, M); None when all are real.
            right_mask: True at real right tokens, shape (B, N); None when all are real.
            need_weights: Whether to return the attention weights too. The softmax is then explicit, in float32, in
                place of ``attention``: the same outputs up to rounding, but slower and M·N in memory.
                The returned weights are those before dropout.

        Returns:
            Outputs of both directions, and their weights or None.

        Raises:
            ValueError: If shapes, dtypes or devices of the tokens or masks do not fit, or ``attention`` returns no
                tensor.
        """
        self._check_inputs(left, right, left_mask, right_mask)
        left, right = _zero_where_masked(left, left_mask), _zero_where_masked(right, right_mask)
        right_projections = self.left_projections if self.right_projections is None else self.right_projections
        from_left, from_right = self.left_projections(left), right_projections(right)
        left_heads, left_weights = self._attend(from_left, from_right, right_mask, need_weights)
        right_heads, right_weights = self._attend(from_right, from_left, left_mask, need_weights)
        left_live = _live_queries(left, left_mask, right, right_mask)
        right_live = _live_queries(right, right_mask, left, left_mask)
        return CrossAttentionOutput(
            _finish(left_heads, self.left_output, left_live),
            _finish(right_heads, self.right_output, right_live),
            None if left_weights is None else _zero_rows(left_weights, left_live),
            None if right_weights is None else _zero_rows(right_weights, right_live),
        )

    def _attend(
        self,
        queries: ProjectedTokens,
        keys: ProjectedTokens,
        key_mask: Bool[Tensor, "B N"] | None,
        need_weights: bool,
    ) -> tuple[Float[Tensor, "B H M d"], Float[Tensor, "B H M N"] | None]:
        query, key, value = queries.query, keys.key, keys.value
        mask = None
        if key_mask is not None:
            # A sample with no real key attends to its zeroed padding: finite, and dropped by the caller.
            mask = (key_mask | ~key_mask.any(dim=1, keepdim=True))[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        scale = query.shape[-1] ** -0.5
        # An attention function need not support empty sequences; the explicit softmax does.
        if need_weights or query.shape[2] == 0 or key.shape[2] == 0:
            attended = weighted_attention(query, key, value, mask=mask, dropout_p=dropout, scale=scale)
            return attended.output, attended.weights if need_weights else None
        output = self.attention(query, key, value, mask=mask, dropout_p=dropout, scale=scale)
        if not isinstance(output, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"attention must return the attended values, a tensor, got a {type(output).__name__}: weights come "
                "with need_weights=True."
            )
        return output, None

    def _check_inputs(self, left: Tensor, right: Tensor, left_mask: Tensor | None, right_mask: Tensor | None) -> None:
        check_tokens("left", left, self.left_dim)
        check_tokens("right", right, self.right_dim)
        if left.shape[0] != right.shape[0]:
            raise ValueError(
                f"right must have the batch size of left, {left.shape[0]}, got shape {tuple(right.shape)}."
            )
        if type(self.left_projections) is TokenProjections:  # a wrapper may keep the weights elsewhere
            check_fits_layer("left", left, self.left_projections.query)
        check_same_device("right", right, "left", left)
        check_same_dtype("right", right, "left", left)
        for name, mask, tokens in (("left", left_mask, left), ("right", right_mask, right)):
            if mask is not None:
                check_mask(f"{name}_mask", mask, tokens.shape[:2])
                check_same_device(f"{name}_mask", mask, name, tokens)

    def extra_repr(self) -> str:
        """Shows the widths and the options."""
        return (
            f"dim={self.dim}, left_dim={self.left_dim}, right_dim={self.right_dim}, "
            f"num_heads={self.num_heads}, tie_projections={self.tie_projections}, dropout={self.dropout}, "
            f"attention={getattr(self.attention, '__name__', self.attention)}"
        )


def _finish(
    heads: Float[Tensor, "B H S d"], output: nn.Module | None, live: Bool[Tensor, "B S"] | None
) -> Float[Tensor, "B S D"]:
    merged = heads.transpose(1, 2).flatten(2)
    return _zero_where_masked(merged if output is None else output(merged), live)


def _zero_where_masked(tokens: Float[Tensor, "B S W"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S W"]:
    # torch.where and no product: 0 · NaN is NaN, forward and backward.
    return tokens if mask is None else torch.where(mask[..., None], tokens, 0.0)


def _zero_rows(weights: Float[Tensor, "B H M N"], live: Bool[Tensor, "B M"] | None) -> Float[Tensor, "B H M N"]:
    return weights if live is None else torch.where(live[:, None, :, None], weights, 0.0)


def _live_queries(
    queries: Float[Tensor, "B M L"],
    query_mask: Bool[Tensor, "B M"] | None,
    keys: Float[Tensor, "B N R"],
    key_mask: Bool[Tensor, "B N"] | None,
) -> Bool[Tensor, "B M"] | None:
    """Returns True for queries that are real and have a real key, or None where all are."""
    if keys.shape[1] == 0:
        return torch.zeros(queries.shape[:2], dtype=torch.bool, device=queries.device)
    if key_mask is None:
        return query_mask
    has_key = key_mask.any(dim=1, keepdim=True).expand(queries.shape[:2])
    return has_key if query_mask is None else query_mask & has_key
