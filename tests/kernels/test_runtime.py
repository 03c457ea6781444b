"""Launches are started, or recorded for a target that need not be present."""

import contextvars

import pytest
import torch

from moekit_kernels.availability import interpreting
from moekit_kernels.precision import float32_precision
from moekit_kernels.runtime import current_target, launch, record
from moekit_kernels.targets import GFX942, SM_90, target_of


class FakeKernel:
    """Records how it was started."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda **arguments: self.calls.append((grid, arguments))


def test_recorded_launches_do_not_run():
    kernel = FakeKernel()
    x = torch.empty(3, device="meta")
    with record(SM_90) as launches:
        launch(kernel, (4, 2), {"x": x, "n": 3}, num_warps=8, num_stages=3)
        assert current_target(x.device) is SM_90
    (recorded,) = launches
    assert recorded.kernel is kernel
    assert (recorded.grid, recorded.num_warps, recorded.num_stages) == ((4, 2), 8, 3)
    assert recorded.arguments["x"] is x
    assert recorded.arguments["n"] == 3
    assert not kernel.calls


def test_recordings_nest_and_end():
    with record(SM_90) as outer:
        with record(GFX942) as inner:
            assert current_target(torch.device("cpu")) is GFX942
        launch(FakeKernel(), (1,), {})
    assert (len(outer), len(inner)) == (1, 0)


def test_an_empty_grid_starts_nothing():
    kernel = FakeKernel()
    launch(kernel, (3, 0), {"x": torch.ones(1)})
    assert not kernel.calls


def test_a_launch_passes_arguments_and_leaves_the_allocator_of_others_alone():
    triton = pytest.importorskip("triton")
    from triton.runtime import _allocation

    def allocator(size, alignment, stream):
        raise AssertionError("this allocator must not be called")

    def scenario():
        triton.set_allocator(allocator)
        kernel = FakeKernel()
        launch(kernel, (5,), {"x": torch.ones(1), "BLOCK": 16}, num_warps=2, num_stages=4)
        ((grid, arguments),) = kernel.calls
        assert grid == (5,)
        assert (arguments["BLOCK"], arguments["num_warps"], arguments["num_stages"]) == (16, 2, 4)
        assert arguments["enable_fp_fusion"]
        assert _allocation._allocator.get() is allocator

    contextvars.copy_context().run(scenario)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_a_gpu_the_error_names_the_remedy(device, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=rf'needs tensors on a GPU, got device {device!r}: use impl="auto"'):
        target_of(torch.device(device))


def test_interpreting_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert interpreting()
    assert target_of(torch.device("cpu")).name == "interpreter"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not interpreting()


def test_float32_is_exact_unless_torch_allows_otherwise():
    before = torch.backends.cuda.matmul.fp32_precision
    assert float32_precision() == "ieee"
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert float32_precision() == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert float32_precision() == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_older_name_of_the_switch_counts_too():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert float32_precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert float32_precision() == "ieee"
