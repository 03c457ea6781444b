"""The sigmoid gate against its equation."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.fusion import ModalityGate

LAW = settings(deadline=None, max_examples=15)
each_kind = pytest.mark.parametrize("per", ["feature", "modality"])


def make_gate(per: str, widths: tuple[int, ...] = (3, 2), **options) -> ModalityGate:
    gate = ModalityGate(widths, per=per, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return gate


def make_features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@LAW
@given(widths=st.lists(st.integers(1, 4), min_size=1, max_size=3), batch=st.integers(0, 3), bias=st.booleans())
def test_feature_gate_is_the_printed_equation(widths: list[int], batch: int, bias: bool) -> None:
    layer = make_gate("feature", tuple(widths), bias=bias)
    features = make_features(batch, sum(widths))
    logits = features @ layer.projection.weight.T + (layer.projection.bias if bias else 0.0)
    out = layer(features)
    torch.testing.assert_close(out.gate, torch.sigmoid(logits))
    torch.testing.assert_close(out.output, features / (1.0 + torch.exp(-logits)))


@LAW
@given(widths=st.lists(st.integers(1, 4), min_size=1, max_size=3), batch=st.integers(0, 3))
def test_modality_gate_scales_each_modality_by_one_number(widths: list[int], batch: int) -> None:
    layer = make_gate("modality", tuple(widths))
    features = make_features(batch, sum(widths))
    out = layer(features)
    gate = torch.sigmoid(features @ layer.projection.weight.T + layer.projection.bias)
    torch.testing.assert_close(out.gate, gate)
    repeats = torch.tensor(widths)
    torch.testing.assert_close(out.output, features * gate.repeat_interleave(repeats, dim=-1))


@each_kind
@pytest.mark.parametrize("initial_gate", [0.1, 0.5, 0.95])
def test_starts_at_the_initial_gate_and_returns_to_it(per: str, initial_gate: float) -> None:
    layer = ModalityGate((3, 2), per=per, initial_gate=initial_gate, dtype=torch.float64)
    features = make_features(4, 5)
    torch.testing.assert_close(layer(features).output, features * initial_gate)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.reset_parameters()
    torch.testing.assert_close(layer(features).output, features * initial_gate)


@each_kind
def test_learns_from_the_first_step(per: str) -> None:
    layer = ModalityGate((3, 2), per=per, dtype=torch.float64)
    layer(make_features(4, 5)).output.square().sum().backward()
    assert layer.projection.weight.grad.count_nonzero() == layer.projection.weight.numel()


@each_kind
def test_leading_dimensions_are_rows(per: str) -> None:
    layer = make_gate(per)
    features = make_features(2, 3, 5)
    rows = layer(features.reshape(6, 5))
    torch.testing.assert_close(layer(features).output, rows.output.reshape(2, 3, 5))
    torch.testing.assert_close(layer(features[0, 0]).gate, rows.gate[0])
    strided = features.transpose(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided).output, layer(features).output.transpose(0, 1))


@each_kind
def test_gradcheck(per: str) -> None:
    layer = make_gate(per)
    parameters = dict(layer.named_parameters())

    def call(features: Tensor, *values: Tensor):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (features,))

    assert torch.autograd.gradcheck(call, (make_features(2, 5).requires_grad_(), *parameters.values()))


@each_kind
def test_compile_export_copy_and_pickle(per: str) -> None:
    layer = make_gate(per)
    features = make_features(4, 5)
    expected = layer(features)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    exported = torch.export.export(layer, (features,), strict=True).module()
    copies = [compiled, exported, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in copies:
        torch.testing.assert_close(other(features), expected)


@each_kind
def test_autocast_keeps_the_features_dtype(per: str) -> None:
    layer = make_gate(per).float()
    features = make_features(4, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(features)
    assert out.output.dtype == torch.float32
    torch.testing.assert_close(out.output, layer(features).output, rtol=0.05, atol=0.05)


def test_meta_device_construction() -> None:
    layer = ModalityGate((3, 2), device="meta")
    assert layer(torch.empty(4, 5, device="meta")).output.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer(torch.ones(1, 5)).gate, torch.full((1, 5), 0.5))


def test_repr_names_the_options() -> None:
    assert "widths=(3, 2), per='modality', initial_gate=0.5" in repr(ModalityGate((3, 2), per="modality"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": ()}, "widths must name at least one modality's width, got none"),
        ({"widths": (3, 0)}, r"widths\[1\] must be at least 1, got 0"),
        ({"per": "token"}, "per must be one of 'feature', 'modality', got 'token'"),
        ({"initial_gate": 1.0}, r"initial_gate must lie in \(0, 1\), got 1.0"),
        ({"initial_gate": 0.0}, r"initial_gate must lie in \(0, 1\), got 0.0"),
        ({"initial_gate": 0.9, "bias": False}, "initial_gate must be 0.5 with bias=False, got 0.9"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityGate(**({"widths": (3, 2)} | arguments))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 4), r"features must have a last dimension of 5, got shape \(2, 4\)"),
        (torch.zeros(()), r"features must have a last dimension of 5, got shape \(\)"),
        (torch.zeros(2, 5).half(), "features must have the dtype of the parameters, torch.float32, got"),
        (torch.zeros(2, 5, device="meta"), "features must be on the device of the parameters, cpu, got meta"),
    ],
)
def test_wrong_inputs(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityGate((3, 2))(features)
