"""Formulas by which ``torch.utils.flop_counter.FlopCounterMode`` counts the operations of this package.

As torch's own formulas do, they count products of matrices alone, two operations for each multiplication, from
shapes: every row of a plan counts, whether or not an expert owns it. Planning and combining have no products, routing
has that of the gate.

The formulas are registered when torch's counter is imported: not here, because it imports Triton.

Letters: N rows, D width of the input, F hidden width, F1 rows of the first matrix (F, or 2F where gated).
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
Formula = Callable[..., int]

_COUNTER = "torch.utils.flop_counter"
_waiting: dict[str, Formula] = {}


def register_flops(operation: str, formula: Formula) -> None:
    """Registers the formula of ``torch.ops.moekit.<operation>``, now or once torch's counter is imported.

    Args:
        operation: Name of the operation.
        formula: Takes the operation's arguments, a shape for each tensor, and keyword arguments to ignore.
    """
    _waiting[operation] = formula
    if _COUNTER in sys.modules:
        _register_waiting()
    elif not any(isinstance(finder, _OnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnImport())


def _register_waiting() -> None:
    # torch's own types leave a parameter of it unknown.
    from torch.utils.flop_counter import register_flop_formula  # pyright: ignore[reportUnknownVariableType]

    while _waiting:
        operation, formula = _waiting.popitem()
        register_flop_formula(getattr(torch.ops.moekit, operation))(formula)


class _OnImport(importlib.abc.MetaPathFinder):
    """Registers the formulas right after torch's counter was imported, and removes itself."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register_waiting()

            spec.loader.exec_module = run_and_register
        return spec


def moe_ffn_flops(
    x: Shape, gates: Shape, token_of_row: Shape, slot_of_row: Shape, offsets: Shape, row_of_slot: Shape | None,
    tiles: Shape | None, up_proj: Shape, down_proj: Shape, *others: Any, **ignored: Any,
) -> int:  # fmt: skip
    """Returns ``2·N·D·F1 + 2·N·D·F``: ``6·N·D·F`` where gated."""
    return _products(token_of_row[0], up_proj) + _products(token_of_row[0], down_proj)


def moe_ffn_backward_flops(
    grad: Shape, x: Shape, gates: Shape, token_of_row: Shape, slot_of_row: Shape, offsets: Shape,
    row_of_slot: Shape | None, tiles: Shape | None, up_proj: Shape, down_proj: Shape, up_bias: Shape | None,
    down_bias: Shape | None, pre: Shape, hidden: Shape, activation: str, input_grad: bool, up_grad: bool,
    down_grad: bool, *others: Any, **ignored: Any,
) -> int:  # fmt: skip
    """Counts the gradients of hidden rows, of tokens, of both weights, and the first product if it was not kept."""
    num_rows = token_of_row[0]
    up, down = _products(num_rows, up_proj), _products(num_rows, down_proj)
    again = up if pre[0] < num_rows else 0
    return again + down + input_grad * up + up_grad * up + down_grad * down


def grouped_gemm_flops(x: Shape, weight: Shape, *others: Any, **ignored: Any) -> int:
    """Returns ``2·N·D·F``."""
    return _products(x[0], weight)


def grouped_gemm_weight_grad_flops(grad: Shape, x: Shape, *others: Any, **ignored: Any) -> int:
    """Returns ``2·N·D·F``."""
    return 2 * grad[0] * grad[1] * x[1]


def route_linear_flops(x: Shape, weight: Shape, *others: Any, **ignored: Any) -> int:
    """Returns ``2·T·D·E``."""
    return 2 * x[0] * weight[0] * weight[1]


def route_linear_backward_flops(
    d_gates: Shape | None, d_finite_logits: Shape | None, d_probs: Shape | None, d_prob_sum: Shape | None,
    d_gate_sum: Shape | None, d_logsumexp_sq_sum: Shape | None, d_entropy_sum: Shape | None, x: Shape, weight: Shape,
    bias: Shape | None, logits: Shape, valid: Shape, ids: Shape, mask: Shape | None, scoring: str, renormalize: bool,
    scaling_factor: float, input_grad: bool, weight_grad: bool, *others: Any, **ignored: Any,
) -> int:  # fmt: skip
    """Counts the products for tokens and for the weight; ``2·T·D·E`` each."""
    return (input_grad + weight_grad) * route_linear_flops(x, weight)


def routed_ffn_flops(
    x: Shape, gate: Shape, gate_bias: Shape | None, selection_bias: Shape | None, up_proj: Shape, down_proj: Shape,
    up_bias: Shape | None, down_bias: Shape | None, top_k: int, *others: Any, **ignored: Any,
) -> int:  # fmt: skip
    """Adds up the products of router and experts."""
    num_rows = x[0] * top_k
    return route_linear_flops(x, gate) + _products(num_rows, up_proj) + _products(num_rows, down_proj)


def routed_ffn_backward_flops(
    grad: Shape | None, d_prob_sum: Shape | None, d_gate_sum: Shape | None, d_logsumexp_sq_sum: Shape | None,
    d_entropy_sum: Shape | None, x: Shape, gate: Shape, gate_bias: Shape | None, up_proj: Shape, down_proj: Shape,
    up_bias: Shape | None, down_bias: Shape | None, integers: Shape, floats: Shape, pre: Shape | None,
    hidden: Shape | None, top_k: int, scoring: str, renormalize: bool, scaling_factor: float, activation: str,
    x_grad: bool, gate_grad: bool, gate_bias_grad: bool, up_grad: bool, down_grad: bool, *others: Any, **ignored: Any,
) -> int:  # fmt: skip
    """Adds up the products of router and experts; those of the experts only where the output has a gradient."""
    of_router = (x_grad + gate_grad) * route_linear_flops(x, gate)
    if grad is None:
        return of_router
    num_rows = x[0] * top_k
    up, down = _products(num_rows, up_proj), _products(num_rows, down_proj)
    again = up if pre is None else 0
    input_grad = x_grad or gate_grad or gate_bias_grad
    return of_router + again + down + input_grad * up + up_grad * up + down_grad * down


def _products(rows: int, weight: Shape) -> int:
    return 2 * rows * weight[1] * weight[2]
