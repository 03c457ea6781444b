"""Timing and memory: what is counted."""

import functools
import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from benchmarks.memory import saved_for_backward
from benchmarks.shapes import Shape
from benchmarks.stages import function_stages, kernel_calls, product_flops
from benchmarks.timing import Step, summary, time_steps, time_wall
from benchmarks.workload import draw

CPU = torch.device("cpu")


def test_a_summary_holds_the_quantiles():
    """Of 0 to 10: the median 5, the 20th percentile 2, the 80th 8."""
    timing = summary([float(i) for i in range(10, -1, -1)])
    assert timing[:4] == (5.0, 2.0, 8.0, 11)
    assert summary([3.0])[:4] == (3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="times_ms must hold at least one time"):
        summary([])


def test_preparation_is_not_timed_and_copies_take_turns():
    """Each body gets what its own preparation made."""
    seen: list[int] = []

    def prepare() -> torch.Tensor:
        return torch.ones(1000, 1000).cumsum(0)

    def body(number: int) -> Step:
        def run(prepared: object) -> None:
            assert isinstance(prepared, torch.Tensor)
            seen.append(number)

        return Step(run, prepare)

    timing = time_steps([body(0), body(1)], CPU, seconds=0.0, least=6)
    assert timing.repeats == 6
    assert seen[-6:] == [0, 1, 0, 1, 0, 1]
    assert timing.median_ms < 0.5
    with pytest.raises(ValueError, match="steps must hold at least one step"):
        time_steps([], CPU)


def test_wall_time_is_that_of_a_block_of_steps_and_blocks_take_turns():
    """By a clock on which one step takes 2 seconds and the other 5."""
    now = [0.0]
    seen: list[str] = []

    def step(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            seen.append(name)
            now[0] += seconds

        return run

    steps = {"a": step("a", 2.0), "b": step("b", 5.0)}
    timings = time_wall(steps, CPU, seconds=24.0, blocks=2, clock=lambda: now[0])
    assert {name: timing[:4] for name, timing in timings.items()} == {
        "a": (2000.0, 2000.0, 2000.0, 2),
        "b": (5000.0, 5000.0, 5000.0, 2),
    }
    assert "".join(seen).endswith("aaaaaabb" * 2)
    with pytest.raises(ValueError, match="steps must hold at least one step"):
        time_wall({}, CPU)


def test_saved_bytes_count_storages_once_and_leave_parameters_out():
    """``(x * y) * (x * y)`` keeps both inputs and the product, once."""
    x = torch.ones(10, requires_grad=True)
    weight = torch.ones(10, requires_grad=True)

    def forward() -> torch.Tensor:
        product = x * weight
        return product * product

    saved = saved_for_backward(forward, [x], [weight])
    assert saved == (40, 40)


def test_counting_keeps_no_tensor_alive():
    """A node that saves its own output makes no cycle with the hooks, so that later cases have the memory."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        output = (x * 2).sigmoid()
        alive.extend((weakref.ref(x), weakref.ref(output)))
        return output

    x = torch.ones(10, requires_grad=True)
    assert saved_for_backward(functools.partial(forward, x), [x], []).intermediates == 40
    del x
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_a_layer_of_ours_keeps_the_floor():
    """Input and pre-activations, and indices."""
    from benchmarks.peers import peers_named
    from benchmarks.runner import memory_of

    workload = draw(Shape(64, 32, 48, 4, 2), "uniform", CPU, torch.float32)
    sizes = memory_of(peers_named(["moekit-torch"])[0].build(workload), workload)
    pre = 64 * 2 * 2 * 48 * 4
    assert pre <= sizes["saved_bytes"] <= 1.15 * pre
    assert sizes["saved_input_bytes"] >= workload.x.nbytes


def test_the_parts_are_all_there_and_run():
    """Every function of the layer, forward and where it has a gradient backward."""
    workload = draw(Shape(12, 16, 8, 4, 2), "uniform", CPU, torch.float32)
    stages = list(function_stages(workload))
    for stage in stages:
        stage.step.body(stage.step.prepare())
    names = ["routing", "gather", "up product", "activation", "down product", "combine"]
    assert [s.name for s in stages if s.direction == "backward"] == names
    forward = {s.name: s.flops for s in stages if s.direction == "forward"}
    assert set(forward) == {*names, "plan"}
    products = sum(flops for flops in forward.values() if flops is not None)
    assert products == workload.shape.flops("forward")


def test_operations_of_a_launch_come_from_its_sizes():
    """Forward, through the activation, and of weight gradients, one or two in a launch; None for what is no product."""
    rows = torch.empty(7)
    assert product_flops({"num_rows": 3, "weight_columns": 5, "K": 2}) == 60
    assert product_flops({"dout_ptr": rows, "num_rows": 3, "num_columns": 5, "K": 2}) == 60
    first = {"dw_ptr": rows, "x_ptr": None, "x_gather_ptr": rows, "M": 2, "N": 3}
    assert product_flops(first) == 84
    second = {"dw2_ptr": rows, "x2_ptr": rows, "x2_gather_ptr": None, "M2": 5, "N2": 1}
    assert product_flops(first | second) == 84 + 70
    few = {"parts_ptr": rows, "dw_up_ptr": rows, "dw_down_ptr": rows, "num_rows": 3, "K": 8, "D": 2, "D2": 2, "F": 4}
    assert product_flops(few) == 2 * 3 * (16 + 16 + 8)
    assert product_flops(few | {"parts_ptr": None}) == 2 * 3 * (16 + 8)
    assert product_flops({"offsets": rows}) is None


@pytest.mark.parametrize("shape", [Shape(16, 64, 128, 8, 2), Shape(1024, 64, 128, 4, 2), Shape(2048, 1024, 256, 4, 2)])
def test_the_launches_of_a_pass_make_up_its_operations(shape):
    """Of few rows and many, with rows gathered inside and into memory: no product is missed, none counted twice."""
    pytest.importorskip("triton")
    from benchmarks.host.stub import stubbed
    from moekit_kernels import runtime
    from moekit_kernels.targets import SM_90

    workload = draw(shape, "uniform", CPU, torch.bfloat16)
    with stubbed():
        calls = kernel_calls(workload)
        for direction in ("forward", "backward"):
            with torch.no_grad(), runtime.record(SM_90) as launches:
                calls[direction]()
            assert sum(product_flops(one.arguments) or 0 for one in launches) == shape.flops(direction)
        with torch.no_grad(), runtime.record(SM_90) as launches:
            calls["routing"]()
        assert [one.kernel.__name__ for one in launches] == ["route_linear_fwd_kernel"]
