"""The grouped GEMM written out: every expert multiplies every row, and its own rows are selected."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.autocast import autocast


def grouped_gemm_reference(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "E F D"],
    offsets: Int[Tensor, "E+1"],
    bias: Float[Tensor, "E F"] | None = None,
) -> Float[Tensor, "N F"]:
    """``y[r] = weight[e] @ x[r] + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Costs ``E`` times the needed FLOPs, for which it has static shapes, no data-dependent control flow
    and ordinary autograd of every order. Rows from ``offsets[E]`` on are unassigned and zero;
    what they hold (NaN included) reaches neither the output nor a gradient.

    Args:
        x: Rows, sorted by expert.
        weight: One matrix per expert.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert.

    Returns:
        Shape ``(N, F)``, dtype of ``x``; under ``torch.autocast`` the autocast dtype, as in ``F.linear``.
    """
    x, weight, bias = autocast(x), autocast(weight), autocast(bias)
    row = torch.arange(x.shape[0], device=x.device)
    out = x.new_zeros(x.shape[0], weight.shape[1])
    for expert in range(weight.shape[0]):
        mine = ((row >= offsets[expert]) & (row < offsets[expert + 1])).unsqueeze(-1)
        y = torch.where(mine, x, 0) @ weight[expert].mT
        if bias is not None:
            y = y + bias[expert]
        out = torch.where(mine, y, out)
    return out
