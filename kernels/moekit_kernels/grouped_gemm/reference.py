"""The grouped GEMM written out: every expert multiplies every row, and its own rows are selected.

Names end with the letters of their layout: N rows, D and F widths of input and output; a 1 is a column.
"""

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
    """Computes ``y[r] = weight[e] @ x[r] + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Costs ``E`` times the needed FLOPs, for which it has static shapes, no data-dependent control flow and ordinary
    autograd of every order. The output of rows from ``offsets[E]`` on, which are unassigned, is zero; what they hold
    (NaN included) reaches neither the output nor a gradient.

    Args:
        x: Rows, sorted by expert.
        weight: One matrix per expert.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert.

    Returns:
        Shape ``(N, F)``, dtype of ``x``; under ``torch.autocast`` the autocast dtype, as in ``F.linear``.
    """
    x_ND, weight, bias = autocast(x), autocast(weight), autocast(bias)
    row_N = torch.arange(x_ND.shape[0], device=x_ND.device)
    out_NF = x_ND.new_zeros(x_ND.shape[0], weight.shape[1])
    for expert in range(weight.shape[0]):
        is_own_N1 = ((row_N >= offsets[expert]) & (row_N < offsets[expert + 1])).unsqueeze(-1)
        y_NF = torch.where(is_own_N1, x_ND, 0) @ weight[expert].mT
        if bias is not None:
            y_NF = y_NF + bias[expert]
        out_NF = torch.where(is_own_N1, y_NF, out_NF)
    return out_NF
