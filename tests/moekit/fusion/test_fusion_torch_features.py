"""Bidirectional cross-attention under PyTorch's own machinery: autograd, compile, export, autocast, copies."""

import copy
import pickle

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.fusion import BidirectionalCrossAttention, masked_mean
from moekit.fusion.cross_attention import CrossAttentionOutput

HEADS = 2


def make_layer(**options) -> BidirectionalCrossAttention:
    torch.manual_seed(0)
    layer = BidirectionalCrossAttention(8, left_dim=6, right_dim=10, num_heads=HEADS, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def make_inputs(m: int = 3, n: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict]:
    generator = torch.Generator().manual_seed(m + 100 * n)
    left = torch.randn(2, m, 6, generator=generator, dtype=dtype)
    right = torch.randn(2, n, 10, generator=generator, dtype=dtype)
    right_mask = torch.arange(n) < torch.tensor([[n], [n - 1]])
    return left, right, {"left_mask": torch.ones(2, m, dtype=torch.bool), "right_mask": right_mask}


def loss_of(out: CrossAttentionOutput) -> Tensor:
    return out.left.square().mean() + out.right.square().mean()


def gradients(layer: torch.nn.Module) -> list[Tensor]:
    grads = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    return grads


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradcheck_of_inputs_and_parameters(need_weights: bool) -> None:
    layer = make_layer(dtype=torch.float64)
    left, right, masks = make_inputs(2, 3, torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def call(left: Tensor, right: Tensor, *values: Tensor):
        out = torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (left, right), masks | {"need_weights": need_weights}
        )
        return tuple(x for x in out if x is not None)

    assert torch.autograd.gradcheck(call, (left.requires_grad_(), right.requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("need_weights", [False, True])
def test_compiles_to_one_graph_with_dynamic_lengths(need_weights: bool) -> None:
    layer = make_layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for m, n in ((3, 4), (5, 2)):
        left, right, masks = make_inputs(m, n)
        loss_of(compiled(left, right, **masks, need_weights=need_weights)).backward()
        compiled_grads = gradients(layer)
        loss_of(layer(left, right, **masks, need_weights=need_weights)).backward()
        torch.testing.assert_close(compiled_grads, gradients(layer))


def test_compiles_with_inductor_under_autocast() -> None:
    layer = make_layer()
    left, right, masks = make_inputs()
    compiled = torch.compile(layer, fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(left, right, **masks)
        expected = layer(left, right, **masks)
    torch.testing.assert_close(out.left, expected.left, rtol=0.05, atol=0.05)
    torch.testing.assert_close(out.right, expected.right, rtol=0.05, atol=0.05)


def test_exports_with_dynamic_batch_and_lengths() -> None:
    layer = make_layer().eval()
    left, right, masks = make_inputs()
    batch, m, n = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "m", "n"))
    exported = torch.export.export(
        layer,
        (left, right),
        masks,
        dynamic_shapes={
            "left": {0: batch, 1: m},
            "right": {0: batch, 1: n},
            "left_mask": {0: batch, 1: m},
            "right_mask": {0: batch, 1: n},
        },
        strict=True,
    ).module()
    left, right, masks = make_inputs(6, 5)
    out, expected = exported(left, right, **masks), layer(left, right, **masks)
    torch.testing.assert_close(out.left, expected.left)
    torch.testing.assert_close(out.right, expected.right)


@pytest.mark.parametrize("need_weights", [False, True])
def test_bfloat16_autocast_stays_near_float32(need_weights: bool) -> None:
    layer = make_layer()
    left, right, masks = make_inputs()
    reference = layer(left, right, **masks, need_weights=need_weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(left, right.bfloat16(), **masks, need_weights=need_weights)
        loss_of(out).backward()
    assert out.left.dtype == torch.bfloat16
    torch.testing.assert_close(out.left.float(), reference.left, rtol=0.05, atol=0.05)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(layer))
    if need_weights:
        assert out.left_weights.dtype == torch.float32


def test_float64_under_autocast_is_refused() -> None:
    layer = make_layer()
    left, right, _ = make_inputs(dtype=torch.float64)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"left must have the dtype of the parameters, torch.float32, got"),
    ):
        layer(left, right)


@pytest.mark.parametrize("need_weights", [False, True])
def test_checkpointing_repeats_the_same_dropout(need_weights: bool) -> None:
    layer = make_layer(dropout=0.3)
    left, right, masks = make_inputs()
    torch.manual_seed(1)
    loss_of(layer(left, right, **masks, need_weights=need_weights)).backward()
    expected = gradients(layer)
    torch.manual_seed(1)
    out = checkpoint(layer, left, right, use_reentrant=False, **masks, need_weights=need_weights)
    loss_of(out).backward()
    torch.testing.assert_close(gradients(layer), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_copies_give_the_same_outputs(tied: bool) -> None:
    torch.manual_seed(0)
    layer = BidirectionalCrossAttention(8, num_heads=HEADS, tie_projections=tied)
    loaded = BidirectionalCrossAttention(8, num_heads=HEADS, tie_projections=tied)
    loaded.load_state_dict(layer.state_dict(), strict=True)
    left, right = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    expected = layer(left, right)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        torch.testing.assert_close(other(left, right).left, expected.left)
        torch.testing.assert_close(other(left, right).right, expected.right)


def test_non_contiguous_inputs() -> None:
    layer = make_layer()
    left, right, masks = make_inputs()
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (left, right)]
    wide_mask = masks["right_mask"].repeat_interleave(2, dim=1)[:, ::2]
    assert not strided[0].is_contiguous()
    assert not wide_mask.is_contiguous()
    out = layer(*strided, left_mask=masks["left_mask"], right_mask=wide_mask)
    expected = layer(left, right, **masks)
    torch.testing.assert_close(out.left, expected.left)
    torch.testing.assert_close(out.right, expected.right)


@pytest.mark.parametrize("need_weights", [False, True])
def test_meta_device(need_weights: bool) -> None:
    layer = make_layer(device="meta")
    left, right, masks = make_inputs()
    out = layer(
        left.to("meta"),
        right.to("meta"),
        **{name: mask.to("meta") for name, mask in masks.items()},
        need_weights=need_weights,
    )
    assert out.left.is_meta
    assert out.left.shape == (2, 3, 8)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(left, right, **masks).left.isfinite().all()


def test_a_backward_hook_fires() -> None:
    layer = make_layer()
    left, right, masks = make_inputs()
    seen = []
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(len(grad_output)))
    loss_of(layer(left.requires_grad_(), right.requires_grad_(), **masks)).backward()
    assert len(seen) == 1


def test_repr_names_the_options() -> None:
    text = repr(make_layer(dropout=0.1))
    assert "dim=8, left_dim=6, right_dim=10, num_heads=2, tie_projections=False, dropout=0.1" in text
    assert "attention=sdpa_attention" in text


def test_shape_annotations_hold() -> None:
    layer = make_layer()
    left, right, masks = make_inputs()
    checked = jaxtyped(typechecker=beartype)(BidirectionalCrossAttention.forward)
    assert checked(layer, left, right, **masks, need_weights=True).left.isfinite().all()
    pool = jaxtyped(typechecker=beartype)(masked_mean)
    torch.testing.assert_close(pool(right, masks["right_mask"]), masked_mean(right, masks["right_mask"]))
