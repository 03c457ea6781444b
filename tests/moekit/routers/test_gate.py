"""The gate network: its formula, its precision, its initial weights and its errors."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit.routers import by_rows
from moekit.routers.gate import Gate, plain_linear, scaled_normal_


def make_gate(dim: int = 5, num_experts: int = 4, dtype: torch.dtype = torch.float64, **options) -> Gate:
    torch.manual_seed(0)
    gate = Gate(dim, num_experts, dtype=dtype, **options)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    return gate


def affine(weight: Tensor, bias: Tensor | None, x: list[float]) -> list[float]:
    rows = []
    for index, row in enumerate(weight.tolist()):
        rows.append(sum(w * v for w, v in zip(row, x, strict=True)) + (0.0 if bias is None else bias[index].item()))
    return rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden_dim", [None, 3])
def test_logits_are_a_linear_layer_or_a_relu_mlp(hidden_dim: int | None, bias: bool) -> None:
    gate = make_gate(hidden_dim=hidden_dim, bias=bias)
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = []
    for token in x.tolist():
        for index, layer in enumerate(gate.layers):
            token = [max(v, 0.0) for v in token] if index else token
            token = affine(layer.weight, layer.bias, token)
        expected.append(token)
    torch.testing.assert_close(gate(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_half_precision_and_autocast_compute_in_float32(
    dtypes: tuple[torch.dtype, torch.dtype], autocast: bool
) -> None:
    weight_dtype, x_dtype = dtypes
    gate = make_gate(64, 4, dtype=weight_dtype, hidden_dim=32, bias=True)
    x = torch.randn(7, 64).to(x_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = gate(x)
    exact = make_gate(64, 4, dtype=torch.float64, hidden_dim=32, bias=True)
    exact.load_state_dict(gate.state_dict())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact(x.double()), rtol=1e-5, atol=1e-4)


def test_float64_weights_or_input_compute_in_float64() -> None:
    gate = make_gate(dtype=torch.float64)
    assert gate(torch.randn(2, 5)).dtype == torch.float64
    assert make_gate(dtype=torch.float32)(torch.randn(2, 5, dtype=torch.float64)).dtype == torch.float64


def test_gradients_agree_with_finite_differences() -> None:
    gate = make_gate(hidden_dim=3, bias=True)
    names = [name for name, _ in gate.named_parameters()]
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(gate, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *gate.parameters()))


def test_weights_start_from_a_truncated_normal_of_the_given_variance() -> None:
    torch.manual_seed(0)
    gate = Gate(100, 400, hidden_dim=200, bias=True, init_scale=0.25)
    # The standard deviation of a unit normal cut at two: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
    shrink = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(2 / math.sqrt(2)))
    for layer, fan_in in zip(gate.layers, (100, 200), strict=True):
        std = math.sqrt(0.25 / fan_in)
        assert layer.weight.abs().max() <= 2 * std
        assert layer.weight.std().item() == pytest.approx(shrink * std, rel=0.02)
        assert layer.bias.eq(0).all()


def test_a_scale_of_zero_starts_from_zero() -> None:
    assert Gate(8, 4, init_scale=0.0)(torch.randn(3, 8)).eq(0).all()
    weight = torch.ones(3)
    scaled_normal_(weight, 3, 0.0)
    assert weight.eq(0).all()


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init_scale must be at least 0, got -0.1"):
        Gate(8, 4, init_scale=-0.1)


def test_reset_draws_weights_anew_and_zeroes_biases() -> None:
    gate = make_gate(bias=True, hidden_dim=3)
    before = [layer.weight.clone() for layer in gate.layers]
    gate.reset_parameters()
    for layer, old in zip(gate.layers, before, strict=True):
        assert not layer.weight.eq(old).any()
        assert layer.bias.eq(0).all()


def test_meta_device() -> None:
    gate = Gate(8, 4, hidden_dim=3, bias=True, device="meta")
    assert gate(torch.empty(2, 8, device="meta")).is_meta
    gate.to_empty(device="cpu").reset_parameters()
    assert gate(torch.randn(2, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"dim": 0, "num_experts": 2}, "dim must be at least 1, got 0"),
        ({"dim": 2, "num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"dim": 2, "num_experts": 2, "hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
    ],
)
def test_widths_below_one_are_refused(widths: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**widths)


def test_inputs_that_do_not_fit_are_refused() -> None:
    gate = Gate(8, 4)
    with pytest.raises(ValueError, match=r"x unless given\) must be of a floating dtype, got torch\.int64"):
        gate(torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 8, got shape \(2, 7\)"):
        gate(torch.zeros(2, 7))
    with pytest.raises(
        ValueError,
        match=r"x unless given\) must be on the device of the router's weights, cpu, got meta",
    ):
        gate(torch.zeros(2, 8, device="meta"))


def test_resetting_every_module_by_itself_keeps_the_gates_initialisation() -> None:
    gate = Gate(8, 4, hidden_dim=8, init_scale=0.0, bias=True)
    for module in gate.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(not parameter.any() for parameter in gate.parameters())


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_of_half_precision_give_what_their_copy_in_float32_gives(monkeypatch, dtypes, bias: bool) -> None:
    monkeypatch.setattr(by_rows, "_LEAST_VALUES", 100)
    monkeypatch.setattr(by_rows, "_BYTES", 4 * 64 * 5)  # blocks of 5 rows, and one of 3
    gate, x = make_gate(64, 6, dtype=dtypes[1], bias=bias), torch.randn(23, 64).to(dtypes[0])
    incoming = torch.randn(23, 6)
    outcomes = []
    for serves in (by_rows.serves, lambda *_: False):
        monkeypatch.setattr("moekit.routers.gate.serves", serves)
        leaf = x.clone().requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            logits = gate(leaf)
        outcomes.append([logits, *torch.autograd.grad(logits, [leaf, *gate.parameters()], incoming)])
        assert any(t.shape == x.shape and t.dtype == torch.float32 for t in kept) == (serves is not by_rows.serves)
    for mine, its in zip(*outcomes, strict=True):
        assert mine.dtype == its.dtype
        torch.testing.assert_close(mine, its, rtol=1e-5 if mine.dtype == torch.float32 else 1e-2, atol=1e-5)


def test_many_rows_of_half_precision_have_gradients_of_second_order(monkeypatch) -> None:
    monkeypatch.setattr(by_rows, "_LEAST_VALUES", 100)
    gate, x = make_gate(64, 6, dtype=torch.bfloat16, bias=True), torch.randn(23, 64).bfloat16()
    outcomes = []
    for serves in (by_rows.serves, lambda *_: False):
        monkeypatch.setattr("moekit.routers.gate.serves", serves)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(gate(leaf).square().sum(), leaf, create_graph=True)
        outcomes.append(torch.autograd.grad(gradient.float().square().sum(), [leaf, gate.layers[0].weight]))
    for mine, its in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-2, atol=1e-2)


def test_gradients_by_rows_only_of_what_needs_one(monkeypatch) -> None:
    monkeypatch.setattr(by_rows, "_LEAST_VALUES", 100)
    gate, x = make_gate(64, 6, dtype=torch.bfloat16), torch.randn(23, 64).bfloat16()
    gate(x).sum().backward()
    assert gate.layers[0].weight.grad.ne(0).any()
    gate.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    gate(leaf).sum().backward()
    torch.testing.assert_close(
        leaf.grad.float(), gate.layers[0].weight.float().sum(0).expand(23, 64), rtol=1e-2, atol=1e-2
    )


def test_few_rows_other_dtypes_and_compiled_code_are_not_taken_by_rows() -> None:
    many, weight = torch.zeros(2**10, 2**9, dtype=torch.bfloat16), torch.zeros(4, 2**9)
    assert by_rows.serves(many, weight)
    assert not by_rows.serves(many[:8], weight)
    assert not by_rows.serves(many.float(), weight)
    assert not by_rows.serves(many, weight.double())
    assert not by_rows.serves(many.to("meta"), weight.to("meta"))
    assert not by_rows.serves(many[None], weight)
    with FlopCounterMode(display=False):  # a mode that is to see the product
        assert not by_rows.serves(many, weight)


@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_gate_shows_its_weight(bias: bool) -> None:
    gate, x = make_gate(bias=bias), torch.randn(3, 5, dtype=torch.float64)
    weight, its_bias = plain_linear(gate, x, 4)
    assert weight is gate.layers[0].weight
    assert its_bias is gate.layers[0].bias
    for other_x, experts in ((x[:, :4], 4), (x[0], 4), (x, 5), (x.to("meta"), 4)):
        assert plain_linear(gate, other_x, experts) is None
    assert plain_linear(make_gate(hidden_dim=3), x, 4) is None
    assert plain_linear(nn.Linear(5, 4), x, 4) is None


def test_a_sharded_weight_is_left_to_the_gate(tmp_path) -> None:
    gate, x = make_gate(), torch.randn(3, 5, dtype=torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        gate.layers[0].weight = nn.Parameter(distribute_tensor(gate.layers[0].weight.detach(), mesh))
        assert plain_linear(gate, x, 4) is None
    finally:
        dist.destroy_process_group()
