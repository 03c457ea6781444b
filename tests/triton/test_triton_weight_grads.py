"""Gradients of weights: through descriptors and through pointers, one product or two in a launch."""

from itertools import pairwise

import pytest
import torch

from moekit_kernels import targets
from moekit_kernels.availability import interpreting
from moekit_kernels.configs import override
from moekit_kernels.grouped_gemm import launches_weight_grads
from moekit_kernels.grouped_gemm.launches_weight_grads import Operands, weight_grads
from tests.oracles import poisoned_empty
from tests.triton.tolerances import assert_near

EXPERTS = 6
COUNTS = (5, 0, 33, 0, 1, 16)  # none, one, a full step of the interpreter's tile, and more
ROWS = 60  # the last five belong to no expert


@pytest.fixture(params=["pointers", "descriptors"])
def loads(request, monkeypatch):
    """Interpreted, rows in plan order are read both ways; on a GPU as its target does."""
    if interpreting():
        tma = request.param == "descriptors"
        monkeypatch.setattr(targets, "INTERPRETER", targets.INTERPRETER._replace(tma=tma))
    elif request.param == "pointers":
        pytest.skip("a GPU reads rows in one way")
    return request.param


def _offsets(device, counts=COUNTS):
    return torch.tensor([0, *counts], device=device).cumsum(0)


def _rows(device, width, dtype, rows=ROWS):
    return torch.randn(rows, width).to(dtype).to(device)


def _expected(operands, offsets):
    """One matrix product for each expert, in float64."""
    dy, x = (
        (rows if gather is None else rows[gather]).double()
        for rows, gather in ((operands.dy, operands.dy_gather), (operands.x, operands.x_gather))
    )
    ends = offsets.tolist()
    return torch.stack([dy[a:b].T @ x[a:b] for a, b in pairwise(ends)])


def _check(products, offsets, dtype):
    with poisoned_empty():
        actual = weight_grads(products, offsets, ROWS)
    for operands, value in zip(products, actual, strict=True):
        assert value.dtype == dtype
        assert_near(value, _expected(operands, offsets), dtype)
        assert not value[offsets.diff() == 0].any()
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("widths", [(24, 40), (16, 8), (7, 33), (1, 8)])
def test_rows_in_plan_order(device, loads, dtype, widths):
    operands = Operands(*(_rows(device, width, dtype) for width in widths))
    _check([operands], _offsets(device), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("widths", [(24, 40, 16, 24), (7, 33, 20, 7)])
def test_two_products_in_one_launch_give_the_bits_of_two(device, dtype, widths):
    token = torch.randint(11, (ROWS,), device=device)
    a, b, c, d = widths
    products = [
        Operands(_rows(device, a, dtype, 11), _rows(device, b, dtype), dy_gather=token),
        Operands(_rows(device, c, dtype), _rows(device, d, dtype, 11), x_gather=token),
    ]
    offsets = _offsets(device)
    both = _check(products, offsets, dtype)
    apart = [weight_grads([operands], offsets, ROWS)[0] for operands in products]
    assert all(map(torch.equal, both, apart))


def test_a_product_through_descriptors_and_one_through_pointers(device, loads):
    token = torch.randint(11, (ROWS,), device=device)
    products = [
        Operands(_rows(device, 24, torch.float16), _rows(device, 8, torch.float16)),
        Operands(_rows(device, 16, torch.float16), _rows(device, 24, torch.float16, 11), x_gather=token),
    ]
    _check(products, _offsets(device), torch.float16)


def test_what_rows_of_no_expert_hold_is_not_added(device, loads):
    """Rows that were never written may hold NaN, and so may the rows of the next expert."""
    dy, x = _rows(device, 24, torch.float16), _rows(device, 40, torch.float16)
    offsets = _offsets(device)
    expected = weight_grads([Operands(dy, x)], offsets, ROWS)[0]
    for rows in (dy, x):
        rows[int(offsets[-1]) :] = torch.nan
        rows[int(offsets[2]) : int(offsets[3])] = torch.nan  # expert 2
    actual = weight_grads([Operands(dy, x)], offsets, ROWS)[0]
    others = torch.arange(EXPERTS, device=device) != 2
    assert torch.equal(actual[others], expected[others])
    assert actual[2].isnan().all()


@pytest.mark.parametrize("counts", [(0, 0, 0, 0, 0, 0), (60, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 60)])
def test_no_rows_and_all_rows_of_one_expert(device, loads, counts):
    _check(
        [Operands(_rows(device, 24, torch.float16), _rows(device, 8, torch.float16))],
        _offsets(device, counts),
        torch.float16,
    )


@pytest.mark.parametrize("per_processor", [0, 1, 2])
@pytest.mark.parametrize("block", [(16, 32, 16), (32, 16, 32)])
def test_other_tiles_and_numbers_of_programs(device, loads, per_processor, block):
    token = torch.randint(11, (ROWS,), device=device)
    entry = {key: [[0, [*block, 2, 4, 4, per_processor]]] for key in ("16-bit", "32-bit", "odd")}
    rows = [_rows(device, 40, torch.float16), _rows(device, 72, torch.float16), _rows(device, 24, torch.float16, 11)]
    with override({name: {"weight_grad": entry} for name in targets.TARGETS}):
        _check([Operands(rows[0], rows[1])], _offsets(device), torch.float16)
        _check(
            [Operands(rows[2], rows[0], token), Operands(rows[1], rows[2], None, token)],
            _offsets(device),
            torch.float16,
        )


def test_the_same_bits_twice(device, loads):
    operands, offsets = Operands(_rows(device, 24, torch.float16), _rows(device, 40, torch.float16)), _offsets(device)
    assert torch.equal(*(weight_grads([operands], offsets, ROWS)[0] for _ in range(2)))


def test_rows_of_a_wider_tensor(device, loads):
    """A stride that is no multiple of 16 bytes takes pointers, any other descriptors."""
    for wide in (64, 43):
        x = _rows(device, wide, torch.float16)[:, :40]
        _check([Operands(_rows(device, 24, torch.float16), x)], _offsets(device), torch.float16)


def test_which_products_take_descriptors(device, loads, monkeypatch):
    names = []
    monkeypatch.setattr(launches_weight_grads, "launch", lambda kernel, *a, **k: names.append(kernel.fn.__name__))
    rows = _rows(device, 24, torch.float16)
    token = torch.zeros(ROWS, dtype=torch.int64, device=device)
    cases = {
        "in plan order": [Operands(rows, rows)],
        "float32": [Operands(rows.float(), rows.float())],
        "gathered": [Operands(rows, rows, token)],
        "two gathered": [Operands(rows, rows, token), Operands(rows, rows, None, token)],
    }
    by_descriptors, by_pointers = "grouped_gemm_bwd_dw_rows_kernel", "grouped_gemm_bwd_dw_kernel"
    for name, products in cases.items():
        names.clear()
        weight_grads(products, _offsets(device), ROWS)
        assert names == [by_descriptors if name == "in plan order" and loads == "descriptors" else by_pointers], name
