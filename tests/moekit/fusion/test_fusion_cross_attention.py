"""Bidirectional cross-attention against a loop over samples, heads and queries, and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.fusion import BidirectionalCrossAttention, weighted_attention

LEFT_DIM, RIGHT_DIM, DIM, HEADS = 6, 10, 8, 2
LAW = settings(deadline=None, max_examples=15)
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31 - 1)


def make_layer(**options) -> BidirectionalCrossAttention:
    torch.manual_seed(0)
    arguments = {"left_dim": LEFT_DIM, "right_dim": RIGHT_DIM, "num_heads": HEADS, "dtype": torch.float64}
    layer = BidirectionalCrossAttention(DIM, **(arguments | options))
    for parameter in layer.parameters():  # the biases too: zeros would hide a mistake
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def make_inputs(seed: int, m: int, n: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(batch, m, LEFT_DIM, generator=generator, dtype=torch.float64)
    right = torch.randn(batch, n, RIGHT_DIM, generator=generator, dtype=torch.float64)
    left_mask = torch.rand(batch, m, generator=generator) < 0.7
    right_mask = torch.rand(batch, n, generator=generator) < 0.7
    return left, right, left_mask, right_mask


def naive_direction(queries, keys, query_mask, key_mask, query_linear, key_linear, value_linear, output):
    """One direction, a query at a time, over the list of its sample's real keys."""
    q, k, v = query_linear(queries), key_linear(keys), value_linear(keys)
    width = DIM // HEADS
    result = torch.zeros(q.shape, dtype=q.dtype)
    for b in range(q.shape[0]):
        real = [n for n in range(k.shape[1]) if key_mask[b, n]]
        for m in range(q.shape[1]):
            if not real or not query_mask[b, m]:
                continue
            heads = []
            for h in range(HEADS):
                part = slice(h * width, (h + 1) * width)
                exps = [math.exp((q[b, m, part] @ k[b, n, part]).item() / math.sqrt(width)) for n in real]
                heads.append(sum(e / sum(exps) * v[b, n, part] for e, n in zip(exps, real, strict=True)))
            joined = torch.cat(heads)
            result[b, m] = joined if output is None else output(joined)
    return result


@pytest.mark.parametrize("output_projection", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@LAW
@given(seed=seeds, m=sizes, n=sizes)
def test_equals_a_loop_over_queries(tied: bool, output_projection: bool, seed: int, m: int, n: int) -> None:
    options = {"tie_projections": tied, "output_projection": output_projection}
    layer = make_layer(**options, **({"right_dim": LEFT_DIM} if tied else {}))
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    right = right[..., :LEFT_DIM] if tied else right
    a = layer.left_projections
    b = layer.left_projections if tied else layer.right_projections
    out = layer(left, right, left_mask=left_mask, right_mask=right_mask)
    with torch.no_grad():
        expected_left = naive_direction(left, right, left_mask, right_mask, a.query, b.key, b.value, layer.left_output)
        expected_right = naive_direction(
            right, left, right_mask, left_mask, b.query, a.key, a.value, layer.right_output
        )
    torch.testing.assert_close(out.left, expected_left)
    torch.testing.assert_close(out.right, expected_right)
    assert out.left_weights is None
    assert out.right_weights is None


@LAW
@given(seed=seeds, m=sizes, n=sizes, masked=st.booleans())
def test_need_weights_gives_the_same_outputs_and_the_weights(seed: int, m: int, n: int, masked: bool) -> None:
    layer = make_layer(output_projection=False)
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    masks = {"left_mask": left_mask, "right_mask": right_mask} if masked else {}
    out = layer(left, right, **masks, need_weights=True)
    plain = layer(left, right, **masks)
    torch.testing.assert_close(out.left, plain.left)
    torch.testing.assert_close(out.right, plain.right)
    # The weights explain the output: they average the (masked) values.
    value = layer.right_projections(torch.where(right_mask[..., None], right, 0.0) if masked else right).value
    torch.testing.assert_close((out.left_weights @ value).transpose(1, 2).flatten(2), out.left)
    live = left_mask & right_mask.any(1, keepdim=True) if masked else torch.ones(2, m, dtype=torch.bool)
    torch.testing.assert_close(out.left_weights.sum(-1), live[:, None].expand(2, HEADS, m).double())
    if masked:
        assert out.left_weights.masked_select(~right_mask[:, None, None, :]).count_nonzero() == 0
        assert out.right_weights.masked_select(~left_mask[:, None, None, :]).count_nonzero() == 0


@LAW
@given(seed=seeds, m=sizes, n=st.integers(2, 6))
def test_order_of_the_keys_does_not_matter(seed: int, m: int, n: int) -> None:
    layer = make_layer()
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    out = layer(left, right, left_mask=left_mask, right_mask=right_mask)
    permuted = layer(left, right[:, order], left_mask=left_mask, right_mask=right_mask[:, order])
    torch.testing.assert_close(permuted.left, out.left)
    torch.testing.assert_close(permuted.right, out.right[:, order])


@pytest.mark.parametrize("need_weights", [False, True])
@LAW
@given(seed=seeds, m=sizes, n=sizes, filler=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_padding_holds_never_matters(need_weights: bool, seed: int, m: int, n: int, filler: float) -> None:
    layer = make_layer()
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    left.masked_fill_(~left_mask[..., None], 0.0)
    right.masked_fill_(~right_mask[..., None], 0.0)
    results = []
    for value in (0.0, filler):
        layer.zero_grad()
        x = left.masked_fill(~left_mask[..., None], value).requires_grad_()
        y = right.masked_fill(~right_mask[..., None], value).requires_grad_()
        out = layer(x, y, left_mask=left_mask, right_mask=right_mask, need_weights=need_weights)
        (out.left.square().sum() + out.right.square().sum()).backward()
        results.append([out.left, out.right, x.grad, y.grad, *(p.grad for p in layer.parameters())])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
    # Padded queries come out as zeros.
    assert results[1][0].masked_select(~left_mask[..., None]).count_nonzero() == 0
    assert results[1][1].masked_select(~right_mask[..., None]).count_nonzero() == 0


@LAW
@given(seed=seeds, m=sizes, n=sizes, extra=st.integers(1, 3))
def test_padding_more_changes_nothing(seed: int, m: int, n: int, extra: int) -> None:
    layer = make_layer()
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    wider = torch.nn.functional.pad(right, (0, 0, extra, 0))
    wider_mask = torch.nn.functional.pad(right_mask, (extra, 0))
    out = layer(left, right, left_mask=left_mask, right_mask=right_mask)
    padded = layer(left, wider, left_mask=left_mask, right_mask=wider_mask)
    torch.testing.assert_close(padded.left, out.left)
    torch.testing.assert_close(padded.right[:, extra:], out.right)


@LAW
@given(seed=seeds, m=sizes, n=sizes)
def test_swapping_streams_and_projections_swaps_the_outputs(seed: int, m: int, n: int) -> None:
    layer = make_layer()
    mirror = make_layer(left_dim=RIGHT_DIM, right_dim=LEFT_DIM)
    mirror.load_state_dict(
        {
            name.replace("left", "-").replace("right", "left").replace("-", "right"): value
            for name, value in layer.state_dict().items()
        }
    )
    left, right, left_mask, right_mask = make_inputs(seed, m, n)
    out = layer(left, right, left_mask=left_mask, right_mask=right_mask, need_weights=True)
    swapped = mirror(right, left, left_mask=right_mask, right_mask=left_mask, need_weights=True)
    torch.testing.assert_close(swapped.right, out.left)
    torch.testing.assert_close(swapped.left, out.right)
    torch.testing.assert_close(swapped.right_weights, out.left_weights)


@LAW
@given(seed=seeds, m=sizes)
def test_with_one_key_the_output_is_linear_in_it(seed: int, m: int) -> None:
    layer = make_layer(bias=False)
    left, right, *_ = make_inputs(seed, m, 1)
    other = make_inputs(seed + 1, m, 1)[1]
    combined = layer(left, 2.0 * right - 3.0 * other).left
    torch.testing.assert_close(combined, 2.0 * layer(left, right).left - 3.0 * layer(left, other).left)
    # A softmax over one key is 1, whatever the queries.
    torch.testing.assert_close(layer(left.flip(0) + 1.0, right).left, layer(left, right).left)


def test_the_printed_form_is_one_head_of_shared_matrices() -> None:
    layer = make_layer(
        left_dim=DIM, right_dim=DIM, num_heads=1, tie_projections=True, output_projection=False, bias=False
    )
    left, right = torch.randn(2, 3, DIM, dtype=torch.float64), torch.randn(2, 4, DIM, dtype=torch.float64)
    w_q, w_k, w_v = (p.T for p in layer.parameters())
    expected = ((left @ w_q) @ (right @ w_k).mT / math.sqrt(DIM)).softmax(-1) @ (right @ w_v)
    torch.testing.assert_close(layer(left, right).left, expected)


@pytest.mark.parametrize("need_weights", [False, True])
def test_sample_without_a_real_key_gives_zeros_and_finite_gradients(need_weights: bool) -> None:
    layer = make_layer()
    left, right, *_ = make_inputs(0, 3, 4)
    left.requires_grad_()
    right_mask = torch.tensor([[False] * 4, [True, True, False, False]])
    out = layer(left, right, right_mask=right_mask, need_weights=need_weights)
    (out.left.sum() + out.right.sum()).backward()
    assert out.left[0].count_nonzero() == 0
    assert out.left[1].count_nonzero() == out.left[1].numel()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    # Sample 0 has no real right token: neither its queries nor its keys may move.
    assert left.grad[0].count_nonzero() == 0
    assert left.grad[1].count_nonzero() > 0
    if need_weights:
        assert out.left_weights[0].count_nonzero() == 0


@pytest.mark.parametrize(("m", "n", "batch"), [(3, 0, 2), (0, 3, 2), (0, 0, 2), (3, 2, 0)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_empty_sequences_and_batches(m: int, n: int, batch: int, need_weights: bool) -> None:
    layer = make_layer()
    left, right, left_mask, right_mask = make_inputs(0, m, n, batch)
    for masks in ({}, {"left_mask": left_mask, "right_mask": right_mask}):
        out = layer(left, right, **masks, need_weights=need_weights)
        assert torch.equal(out.left, torch.zeros(batch, m, DIM, dtype=torch.float64))
        assert torch.equal(out.right, torch.zeros(batch, n, DIM, dtype=torch.float64))
        (out.left.sum() + out.right.sum()).backward()
    if need_weights:
        assert out.left_weights.shape == (batch, HEADS, m, n)


def test_dropout_acts_in_training_only_and_not_on_the_weights() -> None:
    layer = make_layer(dropout=0.5)
    left, right, *_ = make_inputs(0, 3, 4)
    reference = layer.eval()(left, right, need_weights=True)
    torch.testing.assert_close(layer(left, right).left, reference.left)
    layer.train()
    torch.manual_seed(1)
    dropped, again = layer(left, right, need_weights=True), layer(left, right)
    assert not torch.allclose(dropped.left, reference.left)
    assert not torch.allclose(again.left, reference.left)
    torch.testing.assert_close(dropped.left_weights, reference.left_weights)


def test_attention_is_the_function_that_was_given() -> None:
    calls = []

    def recorded(q, k, v, /, *, mask, dropout_p, scale):
        calls.append((tuple(q.shape), tuple(k.shape), None if mask is None else tuple(mask.shape), dropout_p, scale))
        return weighted_attention(q, k, v, mask=mask, dropout_p=dropout_p, scale=scale).output

    layer = make_layer(attention=recorded, dropout=0.25).eval()
    left, right, _, right_mask = make_inputs(0, 3, 4)
    expected = make_layer()(left, right, right_mask=right_mask)
    torch.testing.assert_close(layer(left, right, right_mask=right_mask).left, expected.left)
    scale = (DIM // HEADS) ** -0.5
    assert calls == [
        ((2, HEADS, 3, 4), (2, HEADS, 4, 4), (2, 1, 1, 4), 0.0, scale),
        ((2, HEADS, 4, 4), (2, HEADS, 3, 4), None, 0.0, scale),
    ]


@pytest.mark.parametrize(("m", "n"), [(3, 0), (0, 3)])
def test_an_attention_function_never_gets_an_empty_sequence(m: int, n: int) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("called")

    left, right, *_ = make_inputs(0, m, n)
    out = make_layer(attention=refuse)(left, right)
    assert out.left.count_nonzero() == out.right.count_nonzero() == 0


def test_an_attention_function_that_returns_weights_too_is_refused() -> None:
    layer = make_layer(attention=weighted_attention)
    left, right, *_ = make_inputs(0, 3, 4)
    with pytest.raises(
        ValueError, match="attention must return the attended values, a tensor, got a WeightedAttention"
    ):
        layer(left, right)


def test_tied_projections_share_their_parameters() -> None:
    tied = make_layer(right_dim=LEFT_DIM, tie_projections=True)
    apart = make_layer(right_dim=LEFT_DIM)
    shared = sum(p.numel() for p in apart.left_projections.parameters())
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in tied.parameters()) == shared


def test_fresh_parameters_are_xavier_uniform_with_zero_biases() -> None:
    layer = BidirectionalCrossAttention(64, left_dim=32, num_heads=4)
    weight, bias = layer.left_projections.key.weight, layer.left_output.bias
    bound = math.sqrt(6 / (32 + 64))
    assert bias.count_nonzero() == 0
    assert 0.95 * bound < weight.abs().max() <= bound
    torch.nn.init.ones_(weight)
    torch.nn.init.ones_(bias)
    layer.reset_parameters()
    assert weight.abs().max() <= bound
    assert bias.count_nonzero() == 0


WRONG_ARGUMENTS = [
    ({"dim": 0}, "dim must be at least 1, got 0"),
    ({"left_dim": 0}, "left_dim must be at least 1, got 0"),
    ({"right_dim": -1}, "right_dim must be at least 1, got -1"),
    ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ({"num_heads": 3}, "num_heads must divide dim=8, got 3"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
    ({"tie_projections": True, "left_dim": 4}, "left_dim equal to right_dim, got 4 and 8"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BidirectionalCrossAttention(**({"dim": 8, "num_heads": 2} | arguments))


WRONG_INPUTS = [
    ({"left": torch.zeros(2, 3)}, r"left must have shape \(batch, sequence, 6\), got shape \(2, 3\)"),
    ({"left": torch.zeros(2, 3, 5)}, r"left must have a last dimension of 6, got shape \(2, 3, 5\)"),
    ({"right": torch.zeros(2, 4, 9)}, r"right must have a last dimension of 10, got shape \(2, 4, 9\)"),
    ({"right": torch.zeros(2, 4, 10, dtype=torch.int64)}, "right must be of a floating dtype, got torch.int64"),
    ({"right": torch.zeros(1, 4, 10)}, r"right must have the batch size of left, 2, got shape \(1, 4, 10\)"),
    ({"left": torch.zeros(2, 3, 6).double()}, "left must have the dtype of the parameters, torch.float32, got"),
    ({"right": torch.zeros(2, 4, 10).half()}, "right must have the dtype of left, torch.float32, got"),
    ({"left": torch.zeros(2, 3, 6, device="meta")}, "left must be on the device of the parameters, cpu, got meta"),
    ({"right": torch.zeros(2, 4, 10, device="meta")}, "right must be on the device of left, cpu, got meta"),
    ({"left_mask": torch.ones(2, 4).bool()}, r"left_mask must be a bool tensor of shape \(2, 3\).*\(2, 4\)"),
    ({"left_mask": torch.ones(2, 3)}, "left_mask must be a bool tensor.*got torch.float32"),
    ({"right_mask": torch.ones(2, 3).bool()}, r"right_mask must be a bool tensor of shape \(2, 4\).*\(2, 3\)"),
    ({"right_mask": torch.ones(2, 4).long()}, "right_mask must be a bool tensor.*got torch.int64"),
    (
        {"right_mask": torch.ones(2, 4, device="meta").bool()},
        "right_mask must be on the device of right, cpu, got meta",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_INPUTS)
def test_wrong_inputs(arguments: dict, message: str) -> None:
    layer = make_layer(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        layer(**({"left": torch.zeros(2, 3, LEFT_DIM), "right": torch.zeros(2, 4, RIGHT_DIM)} | arguments))
