"""The two orders of the rows of a gated activation's first matrix, and conversions between them.

*Concatenated* (``"swiglu"``, ``"geglu"``): ``F`` rows of the gate, then ``F`` of the value; ``transformers``'
``gate_up_proj`` of Mixtral and Qwen3. *Interleaved* (``"swiglu_interleaved"``, ``"geglu_interleaved"``): row ``2f``
of the gate, row ``2f + 1`` of the value; GPT-OSS. The same experts in either order give the same output.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def interleave_glu(up: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Converts rows from concatenated to interleaved order: ``out[2f] = up[f]``, ``out[2f + 1] = up[F + f]``.

    Args:
        up: The first matrices ``(E, 2F, D)``, with ``dim=-2``; or their biases ``(E, 2F)``, with ``dim=-1``.
        dim: The dimension of the ``2F`` rows.

    Returns:
        A new tensor of the same shape.

    Raises:
        ValueError: If ``up`` has no dimension ``dim``, or its size there is odd.

    Example:
        >>> interleave_glu(torch.tensor([[1.0, 2.0, 10.0, 20.0]]), dim=-1).tolist()
        [[1.0, 10.0, 2.0, 20.0]]
    """
    dim = _even_dim(up, dim)
    shape = up.shape
    return _transposed(up.reshape(*shape[:dim], 2, shape[dim] // 2, *shape[dim + 1 :]), dim)


def concatenate_glu(up: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Converts rows from interleaved to concatenated order: the inverse of :func:`interleave_glu`.

    Args:
        up: The first matrices ``(E, 2F, D)``, with ``dim=-2``; or their biases ``(E, 2F)``, with ``dim=-1``.
        dim: The dimension of the ``2F`` rows.

    Returns:
        A new tensor of the same shape.

    Raises:
        ValueError: If ``up`` has no dimension ``dim``, or its size there is odd.

    Example:
        >>> concatenate_glu(torch.tensor([[1.0, 10.0, 2.0, 20.0]]), dim=-1).tolist()
        [[1.0, 2.0, 10.0, 20.0]]
    """
    dim = _even_dim(up, dim)
    shape = up.shape
    return _transposed(up.reshape(*shape[:dim], shape[dim] // 2, 2, *shape[dim + 1 :]), dim)


def _transposed(rows: Tensor, dim: int) -> Tensor:
    """Returns a contiguous copy with ``dim`` and ``dim + 1`` swapped, then made one."""
    return rows.transpose(dim, dim + 1).clone(memory_format=torch.contiguous_format).flatten(dim, dim + 1)


def _even_dim(up: Tensor, dim: int) -> int:
    """Returns ``dim`` counted from the front."""
    if not -up.ndim <= dim < up.ndim:
        raise ValueError(f"dim must be a dimension of up, which has shape {tuple(up.shape)}, got {dim}.")
    if up.shape[dim] % 2:
        raise ValueError(
            f"up must have an even size, 2F, in dimension {dim}, got shape {tuple(up.shape)}: "
            "a gated activation has as many rows for the gate as for the value."
        )
    return dim % up.ndim
