"""Products of rows and experts' weights, by descriptors and by pointers, held to float64: every layout of the weights.

Where descriptors read both operands, the loops over tiles and over the depth are fused; see the grouped GEMM's kernel.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from moekit_kernels import targets
from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.availability import interpreting
from moekit_kernels.configs import override
from moekit_kernels.grouped_gemm import launches
from moekit_kernels.plan.schedule import tile_schedules
from tests.oracles import poisoned_empty
from tests.triton.tolerances import assert_near

ACTIVATION_NAMES = [None, "gelu", "swiglu", "swiglu_interleaved", "clamped_swiglu", "clamped_swiglu_interleaved"]
COUNTS = [0, 5, 0, 0, 19, 1]
"""Rows of each expert: none for the first, more than one tile, and fewer than there are experts in a row."""


@pytest.fixture(params=["pointers", "descriptors"], autouse=True)
def _loads(request, monkeypatch):
    if interpreting():
        tma = request.param == "descriptors"
        monkeypatch.setattr(targets, "INTERPRETER", targets.INTERPRETER._replace(tma=tma))
    elif request.param == "pointers":
        pytest.skip("a GPU loads in one way")


class Case(NamedTuple):
    """Operands of one product, and what it must give."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    offsets: Tensor
    gather: Tensor | None
    activation: str | None

    def run(self, num_rows: int, **options) -> tuple[Tensor, Tensor]:
        """Returns the output and the pre-activations, of memory that held NaN before."""
        config = launches.forward_config(self.x, self.weight, num_rows, self.activation)
        (tiles,) = tile_schedules(self.offsets, num_rows, (config.block_m,))
        with poisoned_empty():
            return launches.forward(
                self.x, self.weight, self.offsets, tiles, config, num_rows, bias=self.bias,
                activation=self.activation, gather=self.gather, **options,
            )  # fmt: skip

    def expected(self) -> tuple[Tensor, Tensor]:
        """Returns both in float64, of the rows that have an expert."""
        count = int(self.offsets[-1])
        experts = torch.repeat_interleave(torch.arange(len(self.weight)), self.offsets.diff().cpu()).to(self.x.device)
        rows = self.x[:count] if self.gather is None else self.x[self.gather[:count]]
        pre = torch.einsum("nd,nfd->nf", rows.double(), self.weight[experts].double()) + self.bias[experts].double()
        seen = pre.to(self.x.dtype).double()
        return pre if self.activation is None else ACTIVATIONS[self.activation](seen), pre


def _case(device, activation, *, dtype=torch.float16, n_major=False, gathered=False, dim=24, columns=24, counts=COUNTS):
    generator = torch.Generator().manual_seed(0)
    experts, assigned = len(counts), sum(counts)
    width = 2 * columns if activation is not None and ACTIVATIONS[activation].gated else columns

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    weight = normal(experts, width, dim, scale=max(dim, 1) ** -0.5)
    gather = torch.randint(0, 11, (assigned + 3,), generator=generator).to(device) if gathered else None
    return Case(
        normal(11 if gathered else assigned + 3, dim),
        weight.mT.contiguous().mT if n_major else weight,
        normal(experts, width),
        torch.tensor([0, *counts], device=device).cumsum(0),
        gather,
        activation,
    )


def _check(case, num_rows, **options):
    out, pre = case.run(num_rows, keep_pre=True, **options)
    expected, expected_pre = case.expected()
    count = len(expected)
    assert_near(pre[:count], expected_pre, case.x.dtype, "pre-activations")
    assert_near(out[:count], expected, case.x.dtype, "output")
    assert torch.equal(out[:count], case.run(num_rows, **options)[0][:count]), "kept or not: the same bits"
    return out


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
@pytest.mark.parametrize("gathered", [False, True], ids=["in order", "gathered"])
def test_every_layout_of_weights_and_rows(activation, n_major, gathered, device):
    """Depth and columns are no multiples of a tile, so the last ones lie past the end, or past the gates."""
    _check(_case(device, activation, n_major=n_major, gathered=gathered), sum(COUNTS) + 3)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_interleaved"])
@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
def test_widths_that_no_descriptor_reads(activation, n_major, device):
    _check(_case(device, activation, n_major=n_major, dim=21, columns=13), sum(COUNTS) + 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_dtypes(dtype, device):
    _check(_case(device, "swiglu", dtype=dtype), sum(COUNTS) + 3)


@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("counts", [[0, 0, 4, 0, 0, 0, 0, 0], [0] * 8], ids=["one tile", "no tile"])
def test_more_programs_than_tiles(activation, counts, device):
    """Programs without a tile run their loop zero times."""
    case = _case(device, activation, columns=16, counts=counts)
    out = _check(case, sum(counts) + 3, all_rows=True)
    assert not out[sum(counts) :].any()


def test_more_tiles_than_programs(device):
    """A program goes on from tile to tile, of other experts and other columns."""
    _check(_case(device, "swiglu", columns=56, counts=[17, 0, 33, 40, 16]), 109)


def test_a_depth_of_many_steps_and_of_one(device):
    for dim in (8, 16, 72):
        _check(_case(device, "swiglu", dim=dim), sum(COUNTS) + 3)


def test_no_depth_leaves_the_bias(device):
    case = _case(device, None, dim=0)
    out, _ = case.run(sum(COUNTS) + 3)
    assert torch.equal(out[: sum(COUNTS)], case.expected()[0].to(out.dtype))


@pytest.mark.parametrize("gathered", [False, True], ids=["in order", "gathered"])
def test_unassigned_rows_are_zero_or_left_alone(gathered, device):
    case = _case(device, None, gathered=gathered)
    if not gathered:
        case.x[sum(COUNTS) :] = torch.nan
    num_rows = sum(COUNTS) + 3
    assert not case.run(num_rows, all_rows=True)[0][sum(COUNTS) :].any()
    assert case.run(num_rows)[0][sum(COUNTS) :].isnan().all()


def test_tall_and_wide_tiles(device):
    entries = {name: [[0, [32, 64, 32, 2, 4, 2, 1]]] for name in ("16-bit", "32-bit", "odd")}
    with override({target: {"glu": entries} for target in targets.TARGETS}):
        for activation in ("swiglu", "swiglu_interleaved"):
            _check(_case(device, activation, columns=72), sum(COUNTS) + 3)
