"""The dense feed-forward network that serves as shared expert."""

import pytest
import torch

from moekit import FFN
from tests.oracles import NAIVE_ACTIVATIONS, assert_close


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [*NAIVE_ACTIVATIONS, torch.tanh], ids=lambda act: getattr(act, "__name__", act))
def test_output_is_the_formula(activation, bias, gated):
    ffn = FFN(4, 6, activation=activation, bias=bias, gated=gated, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    act = NAIVE_ACTIVATIONS[activation] if isinstance(activation, str) else activation
    hidden = x @ ffn.up_proj.weight.T + (ffn.up_proj.bias if bias else 0)
    expected = act(hidden) @ ffn.down_proj.weight.T + (ffn.down_proj.bias if bias else 0)
    if gated:
        expected = expected / (1 + torch.exp(-(x @ ffn.gate.weight.T)))
    assert_close(ffn(x), expected)


def test_gradcheck():
    ffn = FFN(3, 4, gated=True, bias=True, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ffn, (x,))


def test_reset_draws_every_layer_anew():
    ffn = FFN(3, 4, gated=True, bias=True)
    before = {name: p.clone() for name, p in ffn.named_parameters()}
    ffn.reset_parameters()
    assert len(before) == 5
    assert not any(torch.equal(p, before[name]) for name, p in ffn.named_parameters())


def test_repr_names_the_activation():
    assert "activation='geglu'" in repr(FFN(3, 4, activation="geglu"))
    assert "activation=tanh" in repr(FFN(3, 4, activation=torch.tanh))


def test_errors():
    with pytest.raises(ValueError, match=r"^dim must be at least 1, got 0"):
        FFN(0, 4)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got -1"):
        FFN(4, -1)
    with pytest.raises(ValueError, match=r"activation must be one of .* got 'selu'"):
        FFN(4, 4, activation="selu")
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(2, 3\)"):
        FFN(4, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(\)"):
        FFN(4, 4)(torch.zeros(()))
