"""A linear layer in float32 of half-precision rows on CPU, without a float32 copy of them all.

Letters: T tokens, D width, E experts.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from moekit_kernels.eager import is_plain_eager

# Bytes of the rows that are in float32 at a time: they stay in the cache of one core.
_BYTES = 2**20
# With fewer values the whole copy stays there.
_LEAST_VALUES = 2**18


def linear_by_rows(
    x: Float[Tensor, "T D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, "E"] | None
) -> Float[Tensor, "T E"]:
    """Computes ``x W^T + bias`` in float32, converting some rows of ``x`` at a time.

    The whole copy would be written to memory and read again in every pass, and be kept for backward.

    Args:
        x: Tokens of a half precision.
        weight: In float32.
        bias: In float32.
    """
    return cast(Tensor, cast(Any, _LinearByRows).apply(x, weight, bias))


def serves(x: Tensor, weight: Tensor) -> bool:
    """Returns whether :func:`linear_by_rows` takes the operands and is worth it: many rows, in plain eager code."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16) or weight.dtype == torch.float64:
        return False
    return x.ndim == 2 and x.numel() > _LEAST_VALUES and is_plain_eager(x, weight)


def _blocks(x: Tensor) -> list[slice]:
    num_tokens, dim = x.shape
    rows = max(_BYTES // (4 * dim), 1)
    return [slice(start, start + rows) for start in range(0, num_tokens, rows)]


class _LinearByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        output = weight.new_empty(x.shape[0], weight.shape[0])
        blocks = _blocks(x)
        memory = weight.new_empty(blocks[0].stop, x.shape[1])
        for block in blocks:
            rows = x[block]
            wide = memory[: rows.shape[0]].copy_(rows)
            if bias is None:
                torch.mm(wide, weight.t(), out=output[block])
            else:
                torch.addmm(bias, wide, weight.t(), out=output[block])
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grad_outputs
        x, weight = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        for_x, for_weight, for_bias = cast(tuple[bool, bool, bool], ctx.needs_input_grad)
        d_bias = grad.sum(0) if for_bias else None
        if torch.is_grad_enabled():  # to be differentiated again
            d_x = (grad @ weight).to(x.dtype) if for_x else None
            return d_x, grad.t() @ x.to(weight.dtype) if for_weight else None, d_bias
        d_x = torch.empty_like(x) if for_x else None
        d_weight = torch.zeros_like(weight) if for_weight else None
        blocks = _blocks(x)
        memory = weight.new_empty(blocks[0].stop, x.shape[1])
        for block in blocks:
            rows, own = x[block], grad[block]
            wide = memory[: rows.shape[0]]
            if d_weight is not None:
                d_weight.addmm_(own.t(), wide.copy_(rows))
            if d_x is not None:
                d_x[block].copy_(torch.mm(own, weight, out=wide))
        return d_x, d_weight, d_bias
