"""The parts of our layer alone: its functions on any device, and on a GPU each kernel that it starts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.base import first_line
from benchmarks.records import Record
from benchmarks.replay import replay
from benchmarks.timing import Step, time_steps
from benchmarks.workload import Workload
from moekit import TopKRouter, combine, dispatch, plan_dispatch
from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.grouped_gemm import grouped_gemm


class Stage(NamedTuple):
    """One part.

    Attributes:
        name: Of the part.
        direction: forward or backward.
        step: What is timed.
        flops: Operations of its product, None without one.
    """

    name: str
    direction: str
    step: Step
    flops: int | None = None


def run_stages(preset: str, workload: Workload, dtype: str, seconds: float) -> list[Record]:
    """Times every part; what cannot run gives a record with the reason."""
    base = Record("stage", "", preset=preset, shape=tuple(workload.shape), skew=workload.skew, dtype=dtype)
    records = []
    for stage in function_stages(workload):
        timing = time_steps([stage.step], workload.x.device, seconds=seconds, most=50)
        record = dataclasses.replace(base, name=stage.name, direction=stage.direction, remark="function")
        records.append(record.timed(timing, flops=stage.flops))
    if not workload.x.is_cuda:
        reason = "Triton kernels are timed on a GPU only"
        return [*records, dataclasses.replace(base, name="kernels").because("absent", reason)]
    return records + run_kernel_stages(base, workload, seconds)


def function_stages(workload: Workload) -> Iterator[Stage]:
    """Yields the stages routing, plan, gather, both products, activation and combine through the public functions."""
    shape, x = workload.shape, workload.x
    torch.manual_seed(5)
    router = TopKRouter(shape.dim, shape.num_experts, shape.top_k, device=x.device, dtype=x.dtype)
    yield from _both("routing", lambda x: router(x).gates, x)
    yield Stage("plan", "forward", Step(lambda _: plan_dispatch(workload.ids, shape.num_experts)))
    plan = plan_dispatch(workload.ids, shape.num_experts)
    products = 2 * shape.slots * shape.dim * shape.hidden_dim
    yield from _both("gather", lambda x: dispatch(x, plan), x)
    rows = dispatch(x, plan)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return grouped_gemm(x, weight, plan.offsets)

    yield from _both("up product", product, rows, workload.up, flops=2 * products)
    pre = grouped_gemm(rows, workload.up, plan.offsets)
    yield from _both("activation", ACTIVATIONS["swiglu"], pre)
    hidden = ACTIVATIONS["swiglu"](pre)
    yield from _both("down product", product, hidden, workload.down, flops=products)
    y = grouped_gemm(hidden, workload.down, plan.offsets)
    yield from _both("combine", lambda rows, gates: combine(rows, plan, gates), y, workload.gates)


def _both(name: str, function: Callable[..., Tensor], *values: Tensor, flops: int | None = None) -> Iterator[Stage]:
    """Yields a differentiable part, forward and backward."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in values]

    def forward(_: object) -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def backward(output: object) -> object:
        assert isinstance(output, Tensor)
        return torch.autograd.grad(output, inputs, torch.ones_like(output))

    yield Stage(name, "forward", Step(forward), flops)
    yield Stage(name, "backward", Step(backward, lambda: function(*inputs)), None if flops is None else 2 * flops)


def run_kernel_stages(base: Record, workload: Workload, seconds: float) -> list[Record]:
    """Times each kernel that ``impl="triton"`` launches, forward and backward, alone and in its own place."""
    records = []
    for direction, call in kernel_calls(workload).items():
        try:
            for stage in kernel_stages(direction, call, workload.x.device):
                timing = time_steps([stage.step], workload.x.device, seconds=seconds, most=50)
                record = dataclasses.replace(base, name=stage.name, direction=stage.direction, remark="kernel")
                records.append(record.timed(timing, flops=stage.flops))
        except Exception as error:  # one pass that does not compile must not hide the others
            reason = f"{type(error).__name__}: {first_line(error)}"
            failed = dataclasses.replace(base, name="kernels", direction=direction)
            records.append(failed.because("failed", reason))
    return records


def kernel_calls(workload: Workload) -> dict[str, Callable[[], object]]:
    """Returns the passes of ``impl="triton"`` by direction, below autograd, so that launches can be recorded."""
    from moekit_kernels.moe_ffn import launches as moe_ffn
    from moekit_kernels.moe_ffn.operands import ExpertWeights

    shape, x = workload.shape, workload.x
    router = TopKRouter(
        shape.dim, shape.num_experts, shape.top_k, impl="triton", return_logits=False, device=x.device, dtype=x.dtype
    )
    plan = plan_dispatch(workload.ids, shape.num_experts)
    tensors = (workload.x, workload.gates, plan.order, ExpertWeights(workload.up, workload.down))
    pre = workload.x.new_empty(shape.slots, 2 * shape.hidden_dim).normal_()  # data decide how fast a GPU multiplies
    hidden = workload.x.new_empty(0, shape.hidden_dim)
    return {
        "routing": lambda: router(x),
        "plan": lambda: plan_dispatch(workload.ids, shape.num_experts, impl="triton"),
        "forward": lambda: moe_ffn.forward(*tensors, "swiglu", True, False),
        "backward": lambda: moe_ffn.backward(workload.grad, *tensors, pre, hidden, "swiglu", True, True, True),
    }


def kernel_stages(direction: str, call: Callable[[], object], device: torch.device) -> Iterator[Stage]:
    """Yields the launches of ``call``, in order, each to be timed before the next one is taken.

    A launch is started when those before it have run, and its step restores what it changes.
    """
    from moekit_kernels import runtime, targets

    with torch.no_grad(), runtime.record(targets.target_of(device)) as launches:
        outputs = call()
    for number, one in enumerate(launches, 1):
        name = f"{number}. {getattr(one.kernel, '__name__', str(one.kernel))}"
        yield Stage(name, direction, replay([one]), product_flops(one.arguments))
    del outputs


def product_flops(arguments: Mapping[str, Any]) -> int | None:
    """Returns the operations of a GEMM kernel, from the sizes among its arguments; None for any other kernel."""
    if {"dw_up_ptr", "dw_down_ptr", "parts_ptr"} <= arguments.keys():  # all gradients of few rows
        up, down = arguments["K"] * arguments["D"], arguments["D2"] * arguments["F"]
        products = (("parts_ptr", up), ("dw_up_ptr", up), ("dw_down_ptr", down))
        return 2 * arguments["num_rows"] * sum(size for name, size in products if arguments[name] is not None)
    if {"num_rows", "weight_columns", "K"} <= arguments.keys():
        return 2 * arguments["num_rows"] * arguments["weight_columns"] * arguments["K"]
    if {"dout_ptr", "num_rows", "num_columns", "K"} <= arguments.keys():
        return 2 * arguments["num_rows"] * arguments["num_columns"] * arguments["K"]
    if {"dw_ptr", "M", "N"} <= arguments.keys():
        return sum(_weight_grad_flops(arguments, which) for which in ("", "2"))  # one launch may serve both matrices
    return None


def _weight_grad_flops(arguments: Mapping[str, Any], which: str) -> int:
    if arguments.get(f"dw{which}_ptr") is None:
        return 0
    gathered = arguments.get(f"x{which}_gather_ptr")
    rows = arguments[f"x{which}_ptr"] if gathered is None else gathered
    return 2 * rows.shape[0] * arguments[f"M{which}"] * arguments[f"N{which}"]
