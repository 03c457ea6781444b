"""Whether the arguments of the grouped GEMM fit each other: shapes, dtypes and names only."""

from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS

ORDERS = ("row", "slot")


def check_operands(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str | None,
    token: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    order: str,
) -> None:
    """Raises ``ValueError`` unless the arguments of ``grouped_gemm`` fit each other."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if order not in ORDERS or (order == "slot" and slot is None):
        raise ValueError(
            f"order must be 'row', or 'slot' with slot given, got {order!r} and slot of {type(slot).__name__}."
        )
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[2]:
        raise ValueError(f"x must be (rows, D) and weight (E, F1, D), got {tuple(x.shape)} and {tuple(weight.shape)}.")
    if activation is not None and ACTIVATIONS[activation].gated and weight.shape[1] % 2:
        raise ValueError(f"weight must have 2F rows for {activation!r}, got shape {tuple(weight.shape)}.")
    if offsets.shape != (weight.shape[0] + 1,):
        raise ValueError(f"offsets must have shape ({weight.shape[0] + 1},), got {tuple(offsets.shape)}.")
    if bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:2])}, got {tuple(bias.shape)}.")
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(
            f"x, weight and bias must have one dtype, got {x.dtype}, {weight.dtype}"
            f"{'' if bias is None else f', {bias.dtype}'}."
        )
    num_rows = x.shape[0] if token is None else token.shape[0]
    for name, given in (("slot", slot), ("gates", gates)):
        if given is not None and given.numel() != num_rows:
            raise ValueError(f"{name} must have one element for each of {num_rows} rows, got {tuple(given.shape)}.")
