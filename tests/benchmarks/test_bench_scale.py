"""Predictions of cost on many GPUs: what they must satisfy whatever is assumed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.scale.model import EXCHANGES, Layer, Machine, predict

LAYER = Layer()
divisions = st.sampled_from([(8, 8), (64, 8), (64, 64), (4096, 64), (10240, 8)])


@given(divisions, st.sampled_from(EXCHANGES), st.floats(0, 1))
def test_efficiency_is_a_share_and_all_of_it_where_all_is_hidden(division, exchange, overlap) -> None:
    shown = predict(LAYER, Machine(overlap=overlap), *division, exchange)
    assert 0 < shown.efficiency <= 1
    assert predict(LAYER, Machine(overlap=1.0), *division, exchange).efficiency == 1


@given(divisions)
def test_a_token_that_goes_once_sends_fewer_bytes(division) -> None:
    one, other = (predict(LAYER, Machine(), *division, exchange) for exchange in EXCHANGES)
    assert other.within < one.within
    assert other.between <= one.between


def test_bytes_between_nodes_begin_beyond_one_node() -> None:
    assert predict(LAYER, Machine(node=8), 64, 8, "exact").between == 0
    over = predict(LAYER, Machine(node=8), 64, 64, "exact")
    # Four exchanges of a row in bfloat16 for each slot, to the 56 of 64 GPUs that are in other nodes.
    assert over.between == 4 * 2 * LAYER.dim * LAYER.tokens * LAYER.top_k * 56 / 64 + 2 * 0 + 8 * 4 * 56


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks must divide the 12 GPUs"):
        predict(LAYER, Machine(), 12, 8, "exact")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--gpu-count", "8", "64", "--rank-count", "8", "--between", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "100 GB/s between" in lines[0]
    assert len(lines) == 4 + 4
    assert main(["scale", "--overlap", "2"]) == 2
