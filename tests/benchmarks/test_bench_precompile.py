"""Compilation side by side: the launches of a layer, and the configurations of autotuned kernels."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton.language as tl  # noqa: E402

from benchmarks.gpu.precompile import (  # noqa: E402
    collect_autotuned,
    compile_autotuned,
    compile_launches,
    launches_of,
    named_driver,
    tune_quickly,
)
from benchmarks.shapes import Shape  # noqa: E402
from moekit_kernels.targets import SM_90  # noqa: E402

FEW = Shape(4, 64, 64, 4, 2)


@triton.autotune(configs=[triton.Config({"BLOCK": n}, num_warps=1) for n in (32, 64)], key=["n"])
@triton.jit
def double_kernel(x_ptr, n, BLOCK: tl.constexpr):
    """Doubles ``x`` in place."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + place, 2 * tl.load(x_ptr + place, mask=place < n), mask=place < n)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache on disk."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_launches_are_those_of_a_layer_each_code_once():
    """Plan, experts forward and backward, routing; another number of tokens adds nothing."""
    launches = launches_of([(FEW, torch.bfloat16)], SM_90)
    names = {one.kernel.__name__ for one in launches}
    assert any("plan" in name for name in names)
    assert any("route" in name for name in names)
    assert any("combine" in name for name in names)
    twice = launches_of([(FEW, torch.bfloat16), (FEW, torch.bfloat16)], SM_90)
    assert len(twice) == len(launches)


@pytest.mark.slow
def test_what_is_compiled_lies_in_the_cache_under_the_keys_of_the_jit(cache):
    """A second time everything is read from there, by fresh processes."""
    first = list(compile_launches([(FEW, torch.bfloat16)], SM_90, 1))
    assert [one.error for one in first] == [""] * len(first)
    files = {path.name for path in cache.iterdir()}
    second = list(compile_launches([(FEW, torch.bfloat16)], SM_90, 2))
    assert sorted(one.kernel for one in second) == sorted(one.kernel for one in first)
    assert {path.name for path in cache.iterdir()} == files


def test_every_configuration_of_an_autotuned_kernel_is_compiled(cache):
    """From calls that are collected, not run; a launch of each then finds it."""
    x = torch.ones(64)
    with collect_autotuned() as calls:
        double_kernel[lambda meta: (1,)](x, 64)
        double_kernel[lambda meta: (1,)](x, 64)
    assert x.sum() == 64
    assert [(call.name, call.configs) for call in calls] == [("double_kernel", 2)] * 2
    results = list(compile_autotuned(calls, SM_90, 1))
    assert [(one.kernel, one.error) for one in results] == [("double_kernel", "")] * 2
    tune_quickly(calls)
    assert double_kernel.do_bench.keywords == {"warmup": 5, "rep": 20}


def test_what_does_not_compile_is_named(cache):
    """And the others are compiled."""
    with collect_autotuned() as calls:
        double_kernel[(1,)](torch.ones(64), "no number")
    assert all("Error" in one.error for one in compile_autotuned(calls, SM_90, 1))


def test_the_driver_is_restored():
    """Even after an error."""
    from triton.runtime import driver

    before = driver._active
    with named_driver(SM_90):
        assert driver.active.get_current_target().arch == 90
    assert driver._active is before
    with pytest.raises(ZeroDivisionError), named_driver(SM_90):
        raise ZeroDivisionError
    assert driver._active is before
