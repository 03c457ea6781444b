"""Cross-scale attention: the formula, its laws, its cost, its errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit import CrossScaleAttention
from moekit.fusion.cross_scale import resize

CHANNELS, SIZES, DIM = (3, 5, 4), ((8, 8), (4, 6), (3, 2)), 6
SWIN = ((96, 192, 384, 768), ((56, 56), (28, 28), (14, 14), (7, 7)))


def make_layer(channels=CHANNELS, dim=DIM, **options) -> CrossScaleAttention:
    layer = CrossScaleAttention(channels, dim, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def make_maps(batch: int = 2, channels=CHANNELS, sizes=SIZES, **options) -> list[Tensor]:
    return [torch.randn(batch, width, *size, **options) for width, size in zip(channels, sizes, strict=True)]


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def naive(layer: CrossScaleAttention, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Project, then resize, then score; or score at its own size a map that is not finer than the output."""
    height, width = maps[layer.align_to].shape[-2:]
    features, logits = [], []
    for projection, head, x in zip(layer.projections, layer.heads, maps, strict=True):
        feature = bilinear(projection(x), height, width)
        features.append(feature)
        finer = x.shape[2] * x.shape[3] > height * width
        own = layer.logits_at == "own" and not finer
        logits.append(bilinear(head(projection(x)), height, width) if own else head(feature))
    weights = torch.cat(logits, 1).softmax(1)
    return (weights.unsqueeze(2) * torch.stack(features, 1)).sum(1), weights


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.sampled_from(["own", "aligned"]),
    st.sampled_from([None, 0, 3]),
    st.data(),
)
def test_the_output_is_the_formula_in_the_naive_order(scales, logits_at, hidden_dim, data) -> None:
    channels, sizes = [c for c, _, _ in scales], [(h, w) for _, h, w in scales]
    align_to = data.draw(st.integers(-len(scales), len(scales) - 1))
    options = {"align_to": align_to, "logits_at": logits_at, "hidden_dim": hidden_dim}
    layer = make_layer(channels, 5, dtype=torch.float64, **options)
    maps = make_maps(2, channels, sizes, dtype=torch.float64)
    fused = layer(maps, need_weights=True)
    output, weights = naive(layer, maps)
    torch.testing.assert_close(fused.output, output)
    torch.testing.assert_close(fused.weights, weights)
    torch.testing.assert_close(fused.weights.sum(1), torch.ones_like(weights[:, 0]))
    assert layer(maps).weights is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_projection_and_resizing_commute(height, width, new_height, new_width) -> None:
    projection = torch.nn.Conv2d(3, 4, 1, dtype=torch.float64)
    x, like = torch.randn(2, 3, height, width, dtype=torch.float64), torch.empty(1, 1, new_height, new_width)
    torch.testing.assert_close(projection(resize(x, like)), resize(projection(x), like))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**31))
def test_linear_heads_score_alike_before_and_after_resizing(align_to, seed) -> None:
    torch.manual_seed(seed)
    own = make_layer(align_to=align_to, hidden_dim=0, dtype=torch.float64)
    aligned = CrossScaleAttention(
        CHANNELS, DIM, align_to=align_to, hidden_dim=0, logits_at="aligned", dtype=torch.float64
    )
    aligned.load_state_dict(own.state_dict())
    maps = make_maps(dtype=torch.float64)
    torch.testing.assert_close(own(maps).output, aligned(maps).output)


def test_both_forms_differ_for_heads_that_are_not_linear() -> None:
    own, aligned = make_layer(align_to=0), make_layer(align_to=0, logits_at="aligned")
    aligned.load_state_dict(own.state_dict())
    maps = make_maps()
    assert not torch.allclose(own(maps).output, aligned(maps).output)


def test_at_first_all_scales_count_alike() -> None:
    fused = CrossScaleAttention(CHANNELS, DIM)(make_maps(), need_weights=True)
    torch.testing.assert_close(fused.weights, torch.full((2, 3, 4, 6), 1 / 3))


@pytest.mark.parametrize(
    ("align_to", "logits_at", "heads"),
    [(1, "own", 16_795_632), (1, "aligned", 29_051_904), (0, "own", 38_584_560), (0, "aligned", 116_207_616)],
)
def test_the_documented_cost_is_what_is_counted(align_to, logits_at, heads) -> None:
    layer = CrossScaleAttention(SWIN[0], 192, align_to=align_to, logits_at=logits_at, device="meta")
    with FlopCounterMode(display=False) as counter:
        layer(make_maps(1, *SWIN, device="meta"))
    target = SWIN[1][align_to][0] ** 2
    projections = 192 * sum(min(h * w, target) * c for c, (h, w) in zip(*SWIN, strict=True))
    if align_to == 1:
        assert projections == 65_028_096
    assert counter.get_total_flops() == 2 * (projections + heads)
    assert f"{heads:,}" in CrossScaleAttention.__doc__
    assert "65,028,096" in CrossScaleAttention.__doc__


@pytest.mark.parametrize("logits_at", ["own", "aligned"])
def test_gradcheck(logits_at) -> None:
    layer = make_layer((2, 3), 4, logits_at=logits_at, hidden_dim=2, dtype=torch.float64)
    maps = make_maps(2, (2, 3), ((3, 2), (2, 2)), dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(first: Tensor, second: Tensor, *values: Tensor):
        parameters = dict(zip(names, values, strict=True))
        return tuple(torch.func.functional_call(layer, parameters, ([first, second],), {"need_weights": True}))

    assert torch.autograd.gradcheck(call, (*maps, *layer.parameters()))


def test_permuting_samples_permutes_outputs_and_none_are_none() -> None:
    layer, maps = make_layer(), make_maps(4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer([x[order] for x in maps]).output, layer(maps).output[order])
    assert layer([x[:0] for x in maps]).output.shape == (0, DIM, 4, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32_and_gives_one_dtype(dtype) -> None:
    layer, maps = make_layer(), make_maps()
    expected = layer(maps, need_weights=True)
    with torch.autocast("cpu", dtype=dtype):
        fused = layer(maps, need_weights=True)
        fused.output.float().square().mean().backward()
    assert fused.output.dtype == dtype
    assert fused.weights.dtype == torch.float32
    torch.testing.assert_close(fused.output.float(), expected.output, rtol=0.05, atol=0.08)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_channels_last_stays_so() -> None:
    layer, maps = make_layer(), make_maps()
    expected = layer(maps).output
    last = layer.to(memory_format=torch.channels_last)([x.to(memory_format=torch.channels_last) for x in maps])
    assert last.output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.output, expected)


def test_compiles_to_one_graph_with_the_same_gradients() -> None:
    layer, maps = make_layer(), make_maps(requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    output = torch.autograd.grad(compiled(maps).output.square().sum(), [*maps, *layer.parameters()])
    expected = torch.autograd.grad(layer(maps).output.square().sum(), [*maps, *layer.parameters()])
    torch.testing.assert_close(output, expected)


def test_exports_with_a_dynamic_batch() -> None:
    layer, maps = make_layer().eval(), make_maps(3)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (maps,), dynamic_shapes=([{0: batch}] * 3,)).module()
    others = make_maps(5)
    torch.testing.assert_close(program(others).output, layer(others).output)


def test_meta_device_and_reset() -> None:
    layer = CrossScaleAttention(CHANNELS, DIM, device="meta")
    assert layer(make_maps(device="meta")).output.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert all(not layer.head(scale)[-1].weight.any() for scale in range(3))
    assert "channels=(3, 5, 4), dim=6, align_to=1, logits_at='own', hidden_dim=1" in repr(layer)


def test_options_out_of_range() -> None:
    for match, call in {
        "channels must name the channels of at least one map, got none": lambda: CrossScaleAttention((), 4),
        r"channels\[1\] must be at least 1, got 0": lambda: CrossScaleAttention((3, 0), 4),
        "dim must be at least 1, got 0": lambda: CrossScaleAttention((3, 4), 0),
        "hidden_dim must be at least 0": lambda: CrossScaleAttention((3, 4), 4, hidden_dim=-1),
        "logits_at must be one of 'own', 'aligned', got 'later'": lambda: CrossScaleAttention(
            (3, 4), 4, logits_at="later"
        ),
        "align_to must be the index of one of the 2 maps, got 2": lambda: CrossScaleAttention((3, 4), 4, align_to=2),
        "align_to must be the index of one of the 1 maps, got 1": lambda: CrossScaleAttention((3,), 4),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_maps_that_do_not_fit() -> None:
    layer = make_layer()
    first, second, third = make_maps()
    for match, maps in {
        r"maps must be a sequence of 3 feature maps, got one tensor of shape \(2, 3, 8, 8\)": first,
        r"maps must be 3 feature maps of \(3, 5, 4\) channels, got 2": [first, second],
        r"maps\[1\] must have shape \(batch, 5, height, width\), got shape \(5, 4, 6\)": [first, second[0], third],
        r"maps\[0\] must have 3 channels, got shape \(2, 5, 4, 6\)": [second, second, third],
        r"maps\[2\] must have the batch size of maps\[0\], 2, got 1": [first, second, third[:1]],
        r"maps\[1\] must have at least one row and one column": [first, second[:, :, :0], third],
        r"maps\[0\] must be of a floating dtype, got torch.int64": [first.long(), second, third],
        r"maps\[2\] must be on the device of the parameters, cpu, got meta": [first, second, third.to("meta")],
        r"maps\[0\] must have the dtype of the parameters, torch.float32": [first.double(), second, third],
    }.items():
        with pytest.raises(ValueError, match=match):
            layer(maps)
