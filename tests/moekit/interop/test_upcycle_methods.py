"""What each method promises of the experts that it makes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit.interop import Copies, DropUpcycling, Noise, UpcyclingMethod, upcycle_
from moekit.interop.upcycling.methods import joined, shards
from moekit.interop.upcycling.mlp import MLPWeights
from tests.moekit.interop.mlps import DIM, Gated, sequential, tokens

FOUR = {"num_experts": 4, "top_k": 2}


def weights_of(hidden: int, gated: bool, bias: bool = True) -> MLPWeights:
    rows = 2 * hidden if gated else hidden
    return MLPWeights(
        torch.randn(rows, DIM),
        torch.randn(DIM, hidden) + 3,
        torch.randn(rows) if bias else None,
        torch.randn(DIM) if bias else None,
    )


@settings(max_examples=30)
@given(parts=st.integers(1, 4), width=st.integers(1, 3), gated=st.booleans(), bias=st.booleans())
def test_parts_joined_are_the_whole(parts: int, width: int, gated: bool, bias: bool) -> None:
    weights = weights_of(parts * width, gated, bias)
    for mine, its in zip(joined(shards(weights, parts)), weights, strict=True):
        assert (mine is None and its is None) or torch.allclose(mine, its)


@settings(max_examples=30)
@given(ratio=st.floats(0, 1), hidden=st.integers(2, 40), gated=st.booleans(), bias=st.booleans())
def test_drop_upcycling_draws_the_same_share_of_units_in_all_weights(
    ratio: float, hidden: int, gated: bool, bias: bool
) -> None:
    weights = weights_of(hidden, gated, bias)
    made = DropUpcycling(ratio)(weights, torch.Generator().manual_seed(0))
    fresh = (made.down != weights.down).any(0)
    assert fresh.sum() == int(ratio * hidden)
    rows = torch.cat([fresh, fresh]) if gated else fresh
    assert torch.equal((made.up != weights.up).any(1), rows)
    assert torch.equal(made.down[:, ~fresh], weights.down[:, ~fresh])
    if bias:
        single = int(fresh.sum()) == 1  # one number has no standard deviation
        assert single or torch.equal(made.up_bias != weights.up_bias, rows)
        assert torch.equal(made.down_bias, weights.down_bias)


def test_drop_upcycling_draws_with_the_mean_and_deviation_of_what_it_replaces() -> None:
    torch.manual_seed(0)
    weights = MLPWeights(torch.randn(2000, 50) * 0.2 - 1, torch.randn(50, 1000) + 3, None, None)
    weights.up[:1000] += 5  # of the gate: a matrix of its own
    made = DropUpcycling(0.5)(weights, None)
    fresh = (made.down != weights.down).any(0)
    for rows, mean, std in ((made.up[:1000], 4.0, 0.2), (made.up[1000:], -1.0, 0.2), (made.down.T, 3.0, 1.0)):
        assert rows[fresh].mean().item() == pytest.approx(mean, abs=0.02)
        assert rows[fresh].std().item() == pytest.approx(std, rel=0.02)


def test_noise_has_the_deviation_that_it_is_given() -> None:
    weights = MLPWeights(5 * torch.randn(500, 40), torch.randn(40, 500), torch.randn(500), None)
    made = Noise(0.1)(weights, None)
    assert (made.up - weights.up).std().item() == pytest.approx(0.5, rel=0.03)
    assert (made.down - weights.down).std().item() == pytest.approx(0.1, rel=0.03)
    assert torch.equal(made.up_bias, weights.up_bias)


@pytest.mark.parametrize("method", [Copies(), Noise(0.0), DropUpcycling(0.0)])
@pytest.mark.parametrize("granularity", [1, 2])
def test_nothing_drawn_is_the_dense_function(method: UpcyclingMethod, granularity: int) -> None:
    model = nn.Sequential(Gated())
    x = tokens()
    before = model(x)
    upcycle_(model, "0", **FOUR, method=method, granularity=granularity)
    assert torch.allclose(model(x), before, atol=1e-5)


@pytest.mark.parametrize("method", [Noise(0.01), DropUpcycling(0.5)])
def test_experts_differ_from_each_other_and_from_the_mlp(method: UpcyclingMethod) -> None:
    model = nn.Sequential(sequential())
    x, weight = tokens(50), model[0][0].weight.detach().clone()
    before = model(x)
    layer = upcycle_(model, "0", **FOUR, method=method)["0"]
    up = torch.cat([layer.moe.experts.up_proj, weight[None]])
    assert torch.pdist(up.flatten(1)).min() > 0
    difference = (model(x) - before).norm() / before.norm()
    # Noise of 1 % in both matrices changes the output by about so much; half of the units are much more.
    assert (1e-3 < difference < 0.05) if isinstance(method, Noise) else difference > 0.05


def test_a_method_of_ones_own() -> None:
    class Halved(UpcyclingMethod):
        def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
            return weights._replace(down=weights.down / 2, down_bias=weights.down_bias / 2)

    class Promising(Halved):
        exact = True

    model = nn.Sequential(sequential())
    x = tokens()
    before = model(x)
    with pytest.raises(ValueError, match="would become a layer that computes something else"):
        upcycle_(model, "0", **FOUR, method=Promising())
    upcycle_(model, "0", **FOUR, method=Halved())
    assert torch.allclose(model(x), before / 2, atol=1e-5)


def test_a_method_whose_output_is_not_finite_is_refused() -> None:
    class Infinite(UpcyclingMethod):
        def __call__(self, weights: MLPWeights, generator: torch.Generator | None) -> MLPWeights:
            return weights._replace(down=weights.down / 0)

    with pytest.raises(ValueError, match="output is not finite"):
        upcycle_(nn.Sequential(sequential()), "0", **FOUR, method=Infinite())


def test_errors_of_methods() -> None:
    with pytest.raises(ValueError, match=r"ratio of DropUpcycling must be from 0 to 1, got 1.5"):
        DropUpcycling(1.5)
    with pytest.raises(ValueError, match="std of Noise must be at least 0, got -1"):
        Noise(-1)
