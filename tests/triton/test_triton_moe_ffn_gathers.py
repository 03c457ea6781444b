"""The expert FFN with rows gathered into memory, in every combination, held to the float64 reference."""

import itertools

import pytest
import torch

from moekit_kernels import targets
from moekit_kernels.availability import interpreting
from moekit_kernels.moe_ffn import gathers, launches_few_rows
from moekit_kernels.moe_ffn.checks import RECOMPUTE
from moekit_kernels.plan import plan_expert_choice
from tests.oracles import poisoned_empty
from tests.strategies import Routed, ffn_case
from tests.triton.moe_ffn_cases import IDS, KEPT, check, operands_of

# A tile past the rows of its expert computes with what lies there, written or not, and stores none of it.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{kind} encountered in:RuntimeWarning")
    for kind in ("overflow", "invalid value", "divide by zero")
]

WAYS = [gathers.Gathers(*way) for way in itertools.product((False, True), repeat=3)]
WAY_IDS = ["+".join(name for name, used in way._asdict().items() if used) or "inside" for way in WAYS]


@pytest.fixture(autouse=True)
def _tiles_and_descriptors(monkeypatch):
    """Small cases would take the kernels for few rows; interpreted, the target has no descriptors of its own."""
    monkeypatch.setattr(launches_few_rows, "MOST_ROWS", -1)
    if interpreting():
        monkeypatch.setattr(targets, "INTERPRETER", targets.INTERPRETER._replace(tma=True))


def _case(activation="swiglu", bias=True):
    """Rows of 16 bytes and multiples of them; expert 1 has no rows, and some rows have no expert."""
    return ffn_case(Routed(IDS, KEPT, 4, 0), 24, 16, 8, activation, bias)


def _with_gathers(way):
    return gathers.override(**way._asdict())


@pytest.mark.parametrize("way", WAYS, ids=WAY_IDS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_output_and_all_gradients(way, recompute, device):
    with _with_gathers(way):
        check(operands_of(_case(), torch.float16, device), recompute=recompute)


@pytest.mark.parametrize("activation", ["gelu", "geglu_interleaved"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype(activation, dtype, device):
    with _with_gathers(WAYS[-1]):
        check(operands_of(_case(activation, bias=False), dtype, device))


def test_widths_that_no_descriptor_can_read_are_gathered_inside(device):
    case = ffn_case(Routed(IDS, KEPT, 4, 0), 20, 12, 17, "swiglu", True)
    with _with_gathers(WAYS[-1]):
        check(operands_of(case, torch.float16, device))


@pytest.mark.parametrize("way", WAYS, ids=WAY_IDS)
def test_no_uninitialised_row_shows_and_the_bits_are_the_same_twice(way, device):
    case = _case()
    case.x[3] = torch.nan  # the token whose slots are all unassigned
    operands = operands_of(case, torch.float16, device)
    with _with_gathers(way):
        first = operands.run_with_gradients()
        with poisoned_empty():
            second = operands.run_with_gradients()
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not first["x"][3].any()
    for name in ("up_proj", "down_proj", "up_bias", "down_bias"):
        assert not first[name][1].any()


def test_expert_choice(device):
    choice = torch.tensor([[0, 1, 2], [4, 0, 2], [2, 0, 1], [0, 3, 4]])
    kept = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    case = _case()
    case = case._replace(x=case.x[:6], gates=torch.randn(4, 3, dtype=torch.float64))  # no expert chose token 5
    plan = plan_expert_choice(choice.to(device), 6, kept=kept.to(device))
    leaves = {name: t.detach().to(device).requires_grad_() for name, t in case.leaves(torch.float16).items()}
    operands = operands_of(_case(), torch.float16, device)._replace(leaves=leaves, plan=plan)
    with _with_gathers(WAYS[-1]):
        check(operands)
        assert not operands.run()[5].any()


def test_strided_tokens_and_an_expanded_gradient(device):
    operands = operands_of(_case(), torch.float16, device)
    leaves = operands.leaves | {"x": operands.leaves["x"].detach().mT.contiguous().mT.requires_grad_()}
    with _with_gathers(WAYS[-1]):
        check(operands._replace(leaves=leaves), grad=lambda out: torch.ones((), dtype=out.dtype).to(out).expand_as(out))
