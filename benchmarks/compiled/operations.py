"""Calls of the launchers with meta tensors: one function for each operation, one entry for each shape."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import PRESETS, Shape
from moekit_kernels.combine import launches as combine
from moekit_kernels.combine.token_rows import TokenRows
from moekit_kernels.grouped_gemm import launches as grouped_gemm
from moekit_kernels.grouped_gemm import launches_weight_grads
from moekit_kernels.grouped_gemm_int8 import launches as grouped_gemm_int8
from moekit_kernels.mass import launches as mass
from moekit_kernels.moe_ffn import ExpertWeights
from moekit_kernels.moe_ffn import gathers as gather_decision
from moekit_kernels.moe_ffn import launches as moe_ffn
from moekit_kernels.plan import RowOrder, launches_rows
from moekit_kernels.plan import launches as plan
from moekit_kernels.plan.schedule import tile_schedules
from moekit_kernels.routing import launches as routing
from moekit_kernels.routing import launches_linear as routing_linear
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients

SHAPES = {
    "qwen3": PRESETS["qwen3-30b-a3b"],
    "mixtral": PRESETS["mixtral"],
    "decode": PRESETS["medvlmoe-paper"],
    # 32 rows an expert, for which there are tiles of their own.
    "few": Shape(512, 2048, 768, 128, 8),
    # Widths that no vector load fits.
    "odd": Shape(1001, 1001, 333, 13, 3),
}
INSIDE, INTO_MEMORY = (gather_decision.Gathers(*3 * [value]) for value in (False, True))


def empty(*size: int, dtype: torch.dtype) -> Tensor:
    """Returns a tensor without storage."""
    return torch.empty(size, dtype=dtype, device="meta")


def indices(*size: int) -> Tensor:
    """Returns indices as a plan has them."""
    return empty(*size, dtype=torch.int64)


def route(
    dtype: torch.dtype,
    tokens: int,
    experts: int,
    top_k: int,
    scoring: str,
    grouped: bool,
    masked: bool,
    group_score: str = "top2_sum",
    renormalize: bool = True,
) -> None:
    """Launches routing, forward and backward."""
    logits, mask = empty(tokens, experts, dtype=dtype), empty(tokens, dtype=torch.bool) if masked else None
    options = RouteOptions(top_k, scoring, renormalize)
    if grouped:
        bias = empty(experts, dtype=torch.float32) if group_score == "top2_sum" else None
        options = options._replace(
            scaling_factor=2.5, selection_bias=bias, num_groups=8, topk_groups=4, group_score=group_score
        )
    output = routing.forward(logits, options, mask)
    grads = RouteGradients(*(getattr(output, name) for name in RouteGradients._fields))
    if not masked:
        grads = grads._replace(logits=None, probs=None, gate_sum=None, entropy_sum=None)
    routing.backward(grads, logits, output.ids, mask, options)


def route_linear(
    dtype: torch.dtype,
    tokens: int,
    dim: int,
    experts: int,
    top_k: int,
    scoring: str = "softmax",
    wide: bool = False,
    biased: bool = False,
) -> None:
    """Launches routing with the gate in it: as in inference, and in training with and without logits and losses.

    With ``wide`` the weight is in float32.
    """
    x = empty(tokens, dim, dtype=dtype)
    weight = empty(experts, dim, dtype=torch.float32 if wide else dtype)
    bias = empty(experts, dtype=weight.dtype) if biased else None
    options = RouteOptions(top_k, scoring)
    routing_linear.forward(x, weight, bias, options, None, False, False)
    output = routing_linear.forward(x, weight, bias, options, None, True, True)
    grads = RouteGradients(*(getattr(output, name) for name in RouteGradients._fields))
    gates_alone = RouteGradients(grads.gates, *[None] * 6)
    kept = (x, weight, bias, output.logits, output.valid, output.ids, None, options)
    routing_linear.backward(gates_alone, *kept, (True, True, biased))
    routing_linear.backward(grads if biased else grads._replace(logits=None, probs=None), *kept, (True, True, biased))


def route_linear_in_fp32(dtype: torch.dtype, **options: Any) -> None:
    """Launches routing with the gate in it, in float32, whatever ``dtype`` is."""
    route_linear(torch.float32, **options)


def limit_mass(dtype: torch.dtype, tokens: int, top_k: int, renormalize: bool) -> None:
    """Launches the limit by mass, forward and backward; gates are in float32."""
    gates = empty(tokens, top_k, dtype=torch.float32)
    limited, kept = mass.forward(gates, 0.5, renormalize)
    mass.backward(limited, gates, kept, renormalize)


def sort(dtype: torch.dtype, shape: Shape, capped: bool) -> None:
    """Launches the plan of top-k routing: without a capacity, or with one by choice and one by gates."""
    ids = indices(shape.tokens, shape.top_k)
    if not capped:
        plan.plan_slots(ids, shape.num_experts)
        return
    kept, gates = empty(shape.tokens, 1, dtype=torch.bool), empty(*ids.shape, dtype=dtype)
    plan.plan_slots(ids, shape.num_experts, limit=plan.Limit(shape.slots // shape.num_experts))
    plan.plan_slots(ids, shape.num_experts, kept, plan.Limit(tensor=indices(1), gates=gates))


def schedule(dtype: torch.dtype, shape: Shape) -> None:
    """Launches tile schedules."""
    tile_schedules(indices(shape.num_experts + 1), shape.slots, (16, 64, 128))


def combine_tokens(dtype: torch.dtype, shape: Shape, choice: bool) -> None:
    """Launches combine of top-k routing, or of expert choice, forward and backward."""
    rows, grad = empty(shape.slots, shape.dim, dtype=dtype), empty(shape.tokens, shape.dim, dtype=dtype)
    gates = empty(shape.slots, dtype=dtype)
    if choice:
        offsets = None
        token_rows = TokenRows(indices(shape.slots), indices(shape.tokens + 1), indices(shape.slots))
    else:
        offsets, token_rows = indices(shape.num_experts + 1), TokenRows(indices(shape.tokens, shape.top_k))
    combine.forward(rows, gates, token_rows, offsets, shape.tokens)
    combine.backward(grad, rows, gates, token_rows)


def combine_parts(dtype: torch.dtype, shape: Shape) -> None:
    """Launches combine without weights, and of the parts of a product whose depth was split."""
    token_rows, offsets = TokenRows(indices(shape.tokens, shape.top_k)), indices(shape.num_experts + 1)
    combine.forward(empty(shape.slots, shape.dim, dtype=dtype), None, token_rows, offsets, shape.tokens)
    parts = empty(4, shape.slots, shape.dim, dtype=torch.float32)
    gates = empty(shape.tokens, shape.top_k, dtype=dtype)
    combine.forward(parts, gates, token_rows, None, shape.tokens, dtype)
    dots = empty(4, shape.slots, dtype=torch.float32)
    combine.input_gradients(
        parts, token_rows, offsets, shape.tokens, dtype, dots, gates, slot_of_row=indices(shape.slots)
    )


def bias_dot(dtype: torch.dtype, shape: Shape) -> None:
    """Launches the part of the gates' gradient that a bias of the down product adds."""
    order = RowOrder(indices(shape.slots), indices(shape.slots), indices(shape.num_experts + 1), None)
    grad, bias = empty(shape.tokens, shape.dim, dtype=dtype), empty(shape.num_experts, shape.dim, dtype=dtype)
    moe_ffn.bias_dot(empty(shape.slots, dtype=torch.float32), grad, bias, order)


def multiply(dtype: torch.dtype, shape: Shape, biased: bool) -> None:
    """Launches a grouped linear layer and all its gradients."""
    x, dy = empty(shape.slots, shape.dim, dtype=dtype), empty(shape.slots, shape.hidden_dim, dtype=dtype)
    weight = empty(shape.num_experts, shape.hidden_dim, shape.dim, dtype=dtype)
    bias = empty(shape.num_experts, shape.hidden_dim, dtype=dtype) if biased else None
    offsets = indices(shape.num_experts + 1)
    for rows, operand, added in ((x, weight, bias), (dy, weight.mT, None)):
        config = grouped_gemm.forward_config(rows, operand, shape.slots, None)
        (tiles,) = tile_schedules(offsets, shape.slots, (config.block_m,))
        grouped_gemm.forward(rows, operand, offsets, tiles, config, shape.slots, bias=added, all_rows=True)
    launches_weight_grads.linear_weight_grad(dy, x, offsets, biased)


def multiply_int8(dtype: torch.dtype, shape: Shape, biased: bool) -> None:
    """Launches a grouped linear layer of int8 weights, and the gradient of its rows."""
    x, dy = empty(shape.slots, shape.dim, dtype=dtype), empty(shape.slots, shape.hidden_dim, dtype=dtype)
    values = empty(shape.num_experts, shape.hidden_dim, shape.dim, dtype=torch.int8)
    scale = empty(shape.num_experts, shape.hidden_dim, dtype=torch.float32)
    bias = empty(shape.num_experts, shape.hidden_dim, dtype=dtype) if biased else None
    offsets = indices(shape.num_experts + 1)
    grouped_gemm_int8.linear(x, values, scale, offsets, bias, False)
    grouped_gemm_int8.linear(dy, values, scale, offsets, None, True)


def ffn(
    dtype: torch.dtype,
    shape: Shape,
    activation: str,
    biased: bool,
    recompute: str = "activation",
    choice: bool = False,
    n_major: bool = False,
    gathers: gather_decision.Gathers | None = None,
) -> None:
    """Launches the expert FFN: forward without gradients, forward with them, and backward.

    With ``n_major`` weights are stored ``(E, D, F)``; ``gathers`` sets by hand what is gathered into memory.
    """
    by_hand = contextlib.nullcontext() if gathers is None else gather_decision.override(**gathers._asdict())
    tokens, width, hidden, experts, top_k = shape
    up_width = hidden * (2 if "glu" in activation else 1)
    x, gates = empty(tokens, width, dtype=dtype), empty(*((shape.slots,) if choice else (tokens, top_k)), dtype=dtype)
    sizes = ((up_width, width), (width, hidden))
    up_proj, down_proj = (
        empty(experts, *reversed(size), dtype=dtype).mT if n_major else empty(experts, *size, dtype=dtype)
        for size in sizes
    )
    up_bias = empty(experts, up_width, dtype=dtype) if biased else None
    down_bias = empty(experts, width, dtype=dtype) if biased else None
    row = None if choice else indices(tokens, top_k)
    order = RowOrder(indices(shape.slots), indices(shape.slots), indices(experts + 1), row)
    tensors = (x, gates, order, ExpertWeights(up_proj, down_proj, up_bias, down_bias))
    with by_hand:
        if not biased:
            moe_ffn.forward(*tensors, activation, False, False)
        _, pre, kept = moe_ffn.forward(*tensors, activation, recompute != "all", recompute == "none")
        moe_ffn.backward(x, *tensors, pre, kept, activation, True, True, True)


def ffn_in_tf32(dtype: torch.dtype, **options: Any) -> None:
    """Launches the expert FFN in float32, whatever ``dtype`` is, where torch's switch allows TF32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        ffn(torch.float32, **options)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def copy_rows(dtype: torch.dtype, shape: Shape, choice: bool = False) -> None:
    """Launches the copy of tokens into the rows of a plan."""
    row = None if choice else indices(shape.tokens, shape.top_k)
    order = RowOrder(indices(shape.slots), indices(shape.slots), indices(shape.num_experts + 1), row)
    launches_rows.rows_of_tokens(empty(shape.tokens, shape.dim, dtype=dtype), order)


def operations() -> Mapping[str, Callable[[torch.dtype], None]]:
    """Returns each case by its name."""
    cases: dict[str, Callable[[torch.dtype], None]] = {
        "route qwen3": partial(
            route, tokens=32768, experts=128, top_k=8, scoring="softmax", grouped=False, masked=False
        ),
        "route mixtral": partial(
            route, tokens=8192, experts=8, top_k=2, scoring="topk_softmax", grouped=False, masked=True
        ),
        "route deepseek": partial(
            route, tokens=8192, experts=256, top_k=8, scoring="sigmoid", grouped=True, masked=False
        ),
        "route sqrt-softplus": partial(
            route, tokens=8192, experts=256, top_k=6, scoring="sqrt_softplus", grouped=True, masked=True
        ),
        "route sqrt-softplus scores": partial(
            route,
            tokens=1001,
            experts=384,
            top_k=6,
            scoring="sqrt_softplus",
            grouped=False,
            masked=False,
            renormalize=False,
        ),
        "route group maximum": partial(
            route,
            tokens=8192,
            experts=160,
            top_k=6,
            scoring="softmax",
            grouped=True,
            masked=False,
            group_score="max",
            renormalize=False,
        ),
        "route most": partial(
            route, tokens=1001, experts=4096, top_k=64, scoring="softmax", grouped=False, masked=True
        ),
        "router olmoe": partial(route_linear, tokens=32768, dim=2048, experts=64, top_k=8, wide=True),
        "router qwen3": partial(route_linear, tokens=32768, dim=2048, experts=128, top_k=8),
        "router mixtral": partial(route_linear, tokens=8192, dim=4096, experts=8, top_k=2, biased=True),
        "router deepseek": partial(
            route_linear, tokens=8192, dim=7168, experts=256, top_k=8, scoring="sigmoid", wide=True
        ),
        "router sqrt-softplus": partial(
            route_linear, tokens=32768, dim=2048, experts=128, top_k=6, scoring="sqrt_softplus"
        ),
        "router fp32 qwen3": partial(route_linear_in_fp32, tokens=32768, dim=2048, experts=128, top_k=8),
        # Few tokens, so that the gradients of logits are in the same kernel.
        "router fp32 deepseek": partial(
            route_linear_in_fp32, tokens=2048, dim=7168, experts=256, top_k=8, scoring="sigmoid"
        ),
        "router odd": partial(route_linear, tokens=32777, dim=2048, experts=64, top_k=8, wide=True),
        "router odd qwen3": partial(route_linear, tokens=32777, dim=2048, experts=128, top_k=8),
        "router decode": partial(route_linear, tokens=32, dim=1024, experts=8, top_k=2),
        "mass qwen3": partial(limit_mass, tokens=32768, top_k=8, renormalize=False),
        "mass renormalized": partial(limit_mass, tokens=1001, top_k=3, renormalize=True),
        "mass most": partial(limit_mass, tokens=1001, top_k=64, renormalize=True),
        "combine parts": partial(combine_parts, shape=SHAPES["decode"]),
        "grouped GEMM biased": partial(multiply, shape=SHAPES["qwen3"], biased=True),
    }
    swiglu = {"activation": "swiglu", "biased": False}
    for name, shape in SHAPES.items():
        cases[f"FFN {name}"] = partial(ffn, shape=shape, **swiglu)
        if name == "few":
            continue  # its other operations are those of the other shapes
        cases[f"plan {name}"] = partial(sort, shape=shape, capped=False)
        cases[f"schedule {name}"] = partial(schedule, shape=shape)
        cases[f"combine {name}"] = partial(combine_tokens, shape=shape, choice=False)
    qwen3, decode = SHAPES["qwen3"], SHAPES["decode"]
    return cases | {
        "rows qwen3": partial(copy_rows, shape=qwen3),
        "rows odd": partial(copy_rows, shape=SHAPES["odd"]),
        "rows most": partial(copy_rows, shape=Shape(8192, 1024, 1024, 4096, 64)),
        "rows expert choice": partial(copy_rows, shape=qwen3, choice=True),
        "FFN gathered inside": partial(ffn, shape=qwen3, **swiglu, gathers=INSIDE),
        "FFN n-major interleaved": partial(
            ffn, shape=qwen3, activation="swiglu_interleaved", biased=False, n_major=True, gathers=INTO_MEMORY
        ),
        "FFN tf32": partial(ffn_in_tf32, shape=qwen3, **swiglu),
        "FFN tf32 few": partial(ffn_in_tf32, shape=SHAPES["few"], **swiglu),
        "int8 qwen3": partial(multiply_int8, shape=qwen3, biased=True),
        "int8 decode": partial(multiply_int8, shape=decode, biased=False),
        "int8 odd": partial(multiply_int8, shape=SHAPES["odd"], biased=False),
        "grouped GEMM odd": partial(multiply, shape=SHAPES["odd"], biased=False),
        # Eight of 128 experts: programs counted by rows, narrow strips through pointers.
        "FFN decode of one token": partial(ffn, shape=PRESETS["decode-qwen3-1"], **swiglu),
        "FFN decode of 16 rows": partial(ffn, shape=decode._replace(tokens=64), **swiglu),
        "FFN decode of 32 rows": partial(ffn, shape=decode._replace(tokens=128), **swiglu),
        "FFN decode odd": partial(ffn, shape=SHAPES["odd"]._replace(tokens=101), **swiglu),
        "FFN decode n-major interleaved": partial(
            ffn, shape=decode, activation="swiglu_interleaved", biased=True, recompute="all", choice=True, n_major=True
        ),
        "plan most": partial(sort, shape=Shape(8192, 1024, 1024, 4096, 64), capped=False),
        "plan capped": partial(sort, shape=qwen3, capped=True),
        "plan decode capped": partial(sort, shape=decode, capped=True),
        # As many experts as a histogram of all slots holds.
        "plan thousands capped": partial(sort, shape=Shape(1024, 1024, 1024, 1022, 8), capped=True),
        "combine expert choice": partial(combine_tokens, shape=qwen3, choice=True),
        "FFN geglu interleaved": partial(
            ffn, shape=qwen3, activation="geglu_interleaved", biased=True, recompute="all"
        ),
        # GPT-OSS's: a function of gate and value, in turn, and weights stored (E, D, F).
        "FFN clamped": partial(
            ffn, shape=qwen3, activation="clamped_swiglu_interleaved", biased=True, n_major=True, gathers=INTO_MEMORY
        ),
        "FFN decode clamped": partial(
            ffn, shape=decode, activation="clamped_swiglu_interleaved", biased=True, n_major=True
        ),
        "FFN clamped concatenated": partial(ffn, shape=qwen3, activation="clamped_swiglu", biased=True),
        "FFN bias": partial(bias_dot, shape=SHAPES["qwen3"]),
        "FFN gelu": partial(ffn, shape=qwen3, activation="gelu", biased=True, recompute="none", choice=True),
        "FFN decode gelu": partial(ffn, shape=decode, activation="gelu", biased=True),
    }


OPERATIONS = operations()
"""Each case by its name; it takes the dtype."""
