"""Sizes, operations, bytes, and the routings that are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shapes import DIRECTIONS, GROUPS, PRESETS, Shape, named_shapes
from benchmarks.workload import draw, draw_ids, popularity
from tests.strategies import few

CPU = torch.device("cpu")
shapes = st.builds(
    lambda t, d, f, e, k: Shape(t, d, f, e, min(k, e)),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 4),
)


@few
@given(shapes)
def test_flops_count_the_multiplications_of_the_products(shape):
    """Two operations for each product of an element of a row with one of a weight."""
    products = [(shape.dim, 2 * shape.hidden_dim), (shape.hidden_dim, shape.dim)]
    forward = sum(2 * shape.tokens * shape.top_k * depth * width for depth, width in products)
    assert shape.flops("forward") == forward
    assert shape.flops("backward") == 2 * forward
    assert shape.flops("forward+backward") == shape.flops("forward") + shape.flops("backward")


@few
@given(shapes)
def test_bytes_add_up_to_the_tensors_that_cross_the_bus(shape):
    """Forward: tokens in, weights in, output out; training also writes the pre-activations."""
    workload = draw(shape, "uniform", CPU, torch.bfloat16)
    tensors = workload.x.nbytes + workload.up.nbytes + workload.down.nbytes
    pre = shape.slots * 2 * shape.hidden_dim * 2
    every = shape.num_experts
    assert shape.least_bytes("forward", every, 2, training=False) == tensors + workload.x.nbytes
    assert shape.least_bytes("forward", every, 2) == tensors + workload.x.nbytes + pre
    both = shape.least_bytes("forward", every, 2) + shape.least_bytes("backward", every, 2)
    assert shape.least_bytes("forward+backward", every, 2) == both
    assert shape.kept_floor(2) == workload.x.nbytes + pre


def test_the_floor_is_that_of_the_papers_formula():
    """``2TD + 4TKF`` bytes in bf16."""
    shape = PRESETS["qwen3-30b-a3b"]
    assert shape.kept_floor(2) == 2 * 32768 * 2048 + 4 * 32768 * 8 * 768


def test_untouched_experts_are_not_read():
    """Reading weights costs what is touched, whatever is there."""
    shape = Shape(4, 8, 8, 16, 2)
    saved = shape.least_bytes("forward", 16, 4) - shape.least_bytes("forward", 3, 4)
    assert saved == 13 * 3 * 8 * 8 * 4


def test_groups_stand_for_their_members():
    """A name may be a preset or a group."""
    assert set(named_shapes(["models", "cpu"])) == {*GROUPS["models"], "cpu"}
    assert all(member in PRESETS for members in GROUPS.values() for member in members)
    with pytest.raises(ValueError, match=r"preset must be one of .*, got 'gpt'"):
        named_shapes(["gpt"])


@few
@given(shapes, st.sampled_from(["uniform", "zipf"]), st.integers(0, 5))
def test_a_token_takes_distinct_experts_and_its_gates_sum_to_one(shape, skew, seed):
    """The routing is one that a top-k router could have made, and the same every time."""
    workload = draw(shape, skew, CPU, torch.float32, seed)
    assert workload.ids.shape == workload.gates.shape == (shape.tokens, shape.top_k)
    assert all(len(set(row)) == shape.top_k for row in workload.ids.tolist())
    assert workload.ids.min() >= 0
    assert workload.ids.max() < shape.num_experts
    assert (workload.gates > 0).all()
    assert torch.allclose(workload.gates.sum(-1), torch.ones(shape.tokens))
    again = draw(shape, skew, CPU, torch.float32, seed)
    assert all(torch.equal(a, b) for a, b in zip(workload[2:], again[2:], strict=True))


def test_gates_are_exact_in_the_dtype_of_the_tokens():
    """So that a library that takes 16-bit gates gets the same ones."""
    gates = draw(Shape(16, 8, 8, 4, 2), "uniform", CPU, torch.bfloat16).gates
    assert gates.dtype == torch.float32
    assert torch.equal(gates, gates.bfloat16().float())


def test_skews_have_their_shares():
    """Equal shares, or shares as 1 over the rank, measured on 20000 tokens."""
    shape = Shape(20000, 1, 1, 8, 1)
    uniform = draw_ids(shape, "uniform").flatten().bincount(minlength=8) / shape.tokens
    assert (uniform - 1 / 8).abs().max() < 0.02
    zipf = draw_ids(shape, "zipf").flatten().bincount(minlength=8).sort(descending=True).values / shape.tokens
    expected = 1 / torch.arange(1.0, 9)
    assert (zipf - expected / expected.sum()).abs().max() < 0.02
    assert popularity(5, "zipf", torch.Generator().manual_seed(0)).sum().item() == pytest.approx(1)
    steeper = draw_ids(shape, "zipf 2").flatten().bincount(minlength=8).sort(descending=True).values / shape.tokens
    expected = 1 / torch.arange(1.0, 9) ** 2
    assert (steeper - expected / expected.sum()).abs().max() < 0.02
    assert torch.equal(draw_ids(shape, "zipf 0"), draw_ids(shape, "uniform"))


@pytest.mark.parametrize("skew", ["flat", "zipf steep", "uniform 2"])
def test_an_unknown_skew_is_named(skew):
    """With what is possible."""
    with pytest.raises(ValueError, match=rf"skew must be one of uniform, zipf, or 'zipf' and an .*, got '{skew}'"):
        draw_ids(Shape(4, 1, 1, 8, 1), skew)


def test_every_direction_is_named():
    """What the command line offers."""
    assert DIRECTIONS == ("forward", "backward", "forward+backward")
