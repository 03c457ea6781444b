"""Checks of what the expert FFN is called with: names, dtypes and shapes, never a value on a device."""

from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS

RECOMPUTE = ("activation", "none", "all")


def check_names(activation: str, recompute: str) -> None:
    """Raises ``ValueError`` unless both are known."""
    for name, value, known in (("activation", activation, ACTIVATIONS), ("recompute", recompute, RECOMPUTE)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_dtypes(
    x: Tensor, up_proj: Tensor, down_proj: Tensor, up_bias: Tensor | None, down_bias: Tensor | None
) -> None:
    """Raises ``ValueError`` unless tokens, weights and biases are of one dtype; gates may be wider."""
    for name, t in (("up_proj", up_proj), ("down_proj", down_proj), ("up_bias", up_bias), ("down_bias", down_bias)):
        if t is not None and t.dtype != x.dtype:
            raise ValueError(
                f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}. "
                "Convert one with .to(), or run under torch.autocast."
            )


def check_shapes(
    x: Tensor,
    offsets: Tensor,
    row: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
) -> None:
    """Raises ``ValueError`` unless the shapes are those of one set of experts."""
    for name, t, letters in (("x", x, "T, D"), ("up_proj", up_proj, "E, F1, D"), ("down_proj", down_proj, "E, D2, F")):
        if t.ndim != letters.count(",") + 1:
            raise ValueError(f"{name} must have shape ({letters}), got shape {tuple(t.shape)}.")
    experts, out_dim, hidden = down_proj.shape
    up_rows = 2 * hidden if ACTIVATIONS[activation].gated else hidden
    expected = (
        ("up_proj", up_proj, (experts, up_rows, x.shape[1])),
        ("offsets", offsets, (experts + 1,)),
        ("up_bias", up_bias, (experts, up_rows)),
        ("down_bias", down_bias, (experts, out_dim)),
    )
    for name, t, shape in expected:
        if t is not None and t.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} for x {tuple(x.shape)}, down_proj {tuple(down_proj.shape)} "
                f"and activation {activation!r}, got {tuple(t.shape)}."
            )
    if row is not None and (row.ndim != 2 or row.shape[0] != x.shape[0]):
        raise ValueError(f"row must have shape (T, K), with T={x.shape[0]} the tokens of x, got {tuple(row.shape)}.")
