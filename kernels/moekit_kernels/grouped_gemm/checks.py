"""Whether the arguments of the grouped GEMM fit each other: shapes and dtypes only."""

from torch import Tensor


def check_operands(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> None:
    """Raises ``ValueError`` unless the arguments of ``grouped_gemm`` fit each other."""
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[2]:
        raise ValueError(f"x must be (N, D) and weight (E, F, D), got {tuple(x.shape)} and {tuple(weight.shape)}.")
    if offsets.shape != (weight.shape[0] + 1,):
        raise ValueError(f"offsets must have shape ({weight.shape[0] + 1},), got {tuple(offsets.shape)}.")
    if bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:2])}, got {tuple(bias.shape)}.")
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(
            f"x, weight and bias must have one dtype, got {x.dtype}, {weight.dtype}"
            f"{'' if bias is None else f', {bias.dtype}'}. Convert with .to(), or run under torch.autocast."
        )
