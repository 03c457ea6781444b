"""Export to ONNX: translations of operators that ``torch.onnx.export`` lacks. Needs the extra ``onnx``."""

from collections.abc import Callable
from typing import Any

import torch

# onnxscript has no types for its operators.
_Value = Any


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns translations of ``aten.sort.stable`` and ``aten.searchsorted``, by which a plan orders its slots.

    Give it to ``torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())``. Layers export with
    ``impl="reference"``, whose operators are torch's own; the number of tokens may be dynamic.

    Returns:
        A translation for each operator.

    Raises:
        ImportError: If ``onnxscript`` is not installed.

    Reference:
        ONNX ``TopK``: of equal values the one with the smaller index comes first, so it sorts stably,
        https://onnx.ai/onnx/operators/onnx__TopK.html.
    """
    try:
        # onnxscript is not installed where this is type-checked, and has few types.
        from onnxscript import opset18  # pyright: ignore
    except ImportError as error:
        raise ImportError('translation_table needs onnxscript: pip install "moekit[onnx]".') from error
    op: Any = opset18

    def sort_stable(x: _Value, stable: bool | None = None, dim: int = -1, descending: bool = False) -> _Value:
        size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(
        boundaries: _Value,
        values: _Value,
        out_int32: bool = False,
        right: bool = False,
        side: str | None = None,
        sorter: _Value | None = None,
    ) -> _Value:
        if sorter is not None:
            raise ValueError("searchsorted with a sorter has no translation: sort the boundaries first.")
        columns, row = op.Constant(value_ints=[-1]), op.Constant(value_ints=[-2])
        values, boundaries = op.Unsqueeze(values, columns), op.Unsqueeze(boundaries, row)
        before = op.LessOrEqual(boundaries, values) if right or side == "right" else op.Less(boundaries, values)
        # The type of an integer of ONNX: 6 is int32, 7 is int64.
        return op.ReduceSum(op.Cast(before, to=6 if out_int32 else 7), columns, keepdims=0)

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten.searchsorted.Tensor: searchsorted}
