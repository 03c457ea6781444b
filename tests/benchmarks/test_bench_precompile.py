"""Compilation side by side: the launches of a layer, and the configurations of autotuned kernels."""

import os
import pickle

import pytest
import torch

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton.language as tl  # noqa: E402

from benchmarks.gpu.precompile import (  # noqa: E402
    calls_of,
    collect_autotuned,
    compile_calls,
    named_driver,
    settle_keys,
    tune_quickly,
)
from benchmarks.host.stub import stubbed  # noqa: E402
from benchmarks.shapes import Shape  # noqa: E402
from moekit import SparseMoE  # noqa: E402
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


def test_calls_are_those_of_a_layer_each_code_once():
    """Router, plan, experts and combine, forward and backward; the same again adds nothing."""
    calls = calls_of([(FEW, torch.bfloat16)], SM_90)
    names = {call.name for call in calls}
    assert all(any(part in name for name in names) for part in ("plan", "route", "few_rows", "combine", "bwd"))
    assert len(calls_of([(FEW, torch.bfloat16), (FEW, torch.bfloat16)], SM_90)) == len(calls)
    assert len(calls_of([(FEW, torch.bfloat16), (FEW, torch.float16)], SM_90)) > len(calls)
    assert pickle.loads(pickle.dumps(calls)) == calls


@pytest.mark.slow
def test_what_is_compiled_lies_in_the_cache_under_the_keys_of_the_jit(cache):
    """A step of the layer then compiles nothing: it reads what fresh processes compiled."""
    calls = calls_of([(FEW, torch.bfloat16)], SM_90)
    assert [one.error for one in compile_calls(calls, SM_90, 2)] == [""] * len(calls)
    files = {path.name for path in cache.iterdir()}
    settle_keys()
    layer = SparseMoE.ffn(64, 64, 4, 2, impl="triton", dtype=torch.bfloat16)
    with stubbed() as driver:
        x = torch.ones(4, 64, dtype=torch.bfloat16, requires_grad=True)
        torch.autograd.grad(layer(x).output, [x, *layer.parameters()], torch.ones_like(x))
    assert len(driver.names) > 5
    assert {path.name for path in cache.iterdir()} == files


def test_every_kernel_has_its_key_before_the_first_launch():
    """Of all modules, so that the order of launches decides nothing."""
    settle_keys()
    from moekit_kernels.moe_ffn.kernel_few_rows_bwd import few_rows_bwd_act_kernel
    from moekit_kernels.routing.kernel_linear import route_linear_fwd_kernel

    assert few_rows_bwd_act_kernel.hash is not None
    assert route_linear_fwd_kernel.hash is not None


def test_every_configuration_of_an_autotuned_kernel_is_compiled(cache):
    """From calls that are collected, not run, equal ones once."""
    x = torch.ones(64)
    with collect_autotuned() as calls:
        double_kernel[lambda meta: (1,)](x, 64)
        double_kernel[lambda meta: (1,)](x, n=64)
        double_kernel[lambda meta: (1,)](x, 64)
    assert x.sum() == 64
    assert [(call.name, call.config) for call in calls] == [("double_kernel", 0), ("double_kernel", 1)] * 3
    results = list(compile_calls(calls, SM_90, 1))
    assert [(one.kernel, one.error) for one in results] == [("double_kernel", "")] * 4
    tune_quickly(calls)
    assert double_kernel.do_bench.keywords == {"warmup": 5, "rep": 20}


def test_what_does_not_compile_is_named(cache):
    """And the others are compiled."""
    with collect_autotuned() as calls:
        double_kernel[(1,)](torch.ones(64), "no number")
    assert all("Error" in one.error for one in compile_calls(calls, SM_90, 1))


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
