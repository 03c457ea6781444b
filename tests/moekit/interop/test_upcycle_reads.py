"""Which MLPs are recognised, and what of others is refused by name."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moekit.interop import upcycle_
from moekit.interop.upcycling.read import read_mlp
from tests.moekit.interop.mlps import DIM, HIDDEN, KINDS, Gated, Packed, Plain, of_timm, of_transformers, sequential

FOUR = {"num_experts": 4, "top_k": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mlp_becomes_a_layer_of_its_output_and_gradient(kind: str) -> None:
    model = nn.Sequential(nn.Identity(), KINDS[kind]()).double().eval()
    x = torch.randn(2, 7, DIM, dtype=torch.float64, requires_grad=True)
    before = model(x)
    (gradient,) = torch.autograd.grad(before.square().sum(), x)
    layer = upcycle_(model, "1", **FOUR)["1"]
    after = model(x)
    assert model[1] is layer
    assert torch.allclose(after, before, rtol=0, atol=1e-10)
    # The sum of gates has no gradient by the router, since the experts are alike: this is the gradient of the MLP.
    assert torch.allclose(torch.autograd.grad(after.square().sum(), x)[0], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "activation"),
    [
        (lambda: sequential(nn.GELU("tanh")), "gelu_tanh"),
        (lambda: sequential(nn.ReLU(inplace=True)), "relu"),
        (Gated, "swiglu"),
        (lambda: Packed("gate_last"), "geglu"),
        (lambda: of_transformers("gpt2"), "gelu_tanh"),
        (lambda: of_transformers("phi3"), "swiglu"),
        (lambda: of_timm("SwiGLUPacked"), "swiglu"),
    ],
)
def test_activations_that_have_a_fused_form_run_fused(make: Callable[[], nn.Module], activation: str) -> None:
    assert read_mlp("mlp", make()).activation == activation


def test_the_gate_is_told_from_the_values_and_dropouts_are_placed() -> None:
    layout = read_mlp("mlp", Gated())
    assert (layout.gate, layout.up, layout.down) == ("third", "second", "last")
    assert read_mlp("mlp", Plain(bias=False)).output_dropouts == ("drop",)
    assert read_mlp("mlp", Plain(drop="hidden", bias=False)).hidden_dropouts == ("drop",)
    unused = read_mlp("mlp", Plain(drop=""))
    assert unused.output_dropouts == unused.hidden_dropouts == ()


def test_reading_draws_no_random_numbers_and_changes_nothing() -> None:
    mlp = Plain().train()
    before, state = copy.deepcopy(mlp.state_dict()), torch.get_rng_state()
    read_mlp("mlp", mlp)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.training for each in mlp.modules())
    assert all(torch.equal(mine, before[name]) for name, mine in mlp.state_dict().items())


class TwoOutputs(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class TwoInputs(Plain):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) + y


class MixesTokens(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


class OnlyInTraining(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class WithParameter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(DIM))


class WithBuffer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))


class TwoActivations(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.GELU()


def hooked() -> nn.Module:
    mlp = Plain()
    mlp.first.register_forward_hook(lambda *_: None)
    return mlp


def replaced() -> nn.Module:
    mlp = Plain()
    mlp.forward = lambda x: x
    return mlp


def tied() -> nn.Module:
    mlp = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))
    mlp[2].weight = mlp[0].weight
    return mlp


def half_frozen() -> nn.Module:
    mlp = Gated()
    mlp.third.weight.requires_grad_(False)
    return mlp


def one_gate_bias() -> nn.Module:
    mlp = Gated()
    mlp.third.bias = None
    return mlp


def mixed() -> nn.Module:
    mlp = Plain()
    mlp.last.bfloat16()
    return mlp


def parametrized() -> nn.Module:
    mlp = Plain()
    parametrize.register_parametrization(mlp.first, "weight", nn.Identity())
    return mlp


def gated_dropout() -> nn.Module:
    return of_timm("SwiGLU", drop=0.1)


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Linear(DIM, DIM), "has one linear layer, itself.*as BERT does"),
    (lambda: nn.Sequential(*[nn.Linear(DIM, DIM) for _ in range(4)]), r"has 4 linear layers \(0, 1, 2, 3\)"),
    (nn.Identity, "has 0 linear layers"),
    (lambda: sequential(nn.Softmax(-1)), "has 1, a Softmax, whose function is not known"),
    (lambda: sequential(nn.RReLU()), "has 1, a RReLU, whose function is not known"),
    (lambda: sequential(nn.PReLU()), "has 1, a PReLU, whose function is not known"),
    (lambda: sequential(nn.ReLU(), nn.LayerNorm(HIDDEN)), "has 2, a LayerNorm, whose function is not known"),
    (lambda: nn.Sequential(nn.Linear(DIM, 5), nn.ReLU(), nn.Linear(7, 8)), "widths do not fit: 0 6 to 5, 2 7 to 8"),
    (lambda: Plain(scale=2.0), "computes something else than linear layers"),
    (MixesTokens, "computes something else than linear layers"),
    (OnlyInTraining, "computes something else than linear layers"),
    (TwoOutputs, "its output is a tuple, not one tensor"),
    (TwoInputs, "fails on tokens .* TypeError: .*missing 1 required"),
    (TwoActivations, "has more than one activation or more than 3 dropouts: act, other, drop"),
    (WithParameter, "has parameters beside those of linear layers, gamma"),
    (WithBuffer, "has buffers, count"),
    (hooked, "has forward_hooks on first.*Remove them first"),
    (replaced, "has a forward of itself that was replaced or compiled"),
    (tied, "has layers that share a weight"),
    (half_frozen, "has only one of third and second frozen.*Freeze both or neither"),
    (one_gate_bias, "has a bias in only one of (third and second|second and third)"),
    (mixed, "different or of no floating dtypes or devices, torch.bfloat16 on cpu, torch.float32 on cpu"),
    (parametrized, "has first, a ParametrizedLinear, whose function is not known|has one linear layer"),
    (gated_dropout, "has a dropout in its hidden layer, drop1, which gated experts have not.*Set its p to 0"),
    (lambda: of_timm("GluMlp"), "has a gate with act, a Sigmoid, for which experts have no gated form"),
    (lambda: of_timm("Mlp", norm_layer=nn.LayerNorm), "has norm, a LayerNorm, whose function is not known"),
    (lambda: of_timm("GlobalResponseNormMlp"), "has grn, a GlobalResponseNorm, whose function is not known"),
    (lambda: of_timm("ConvMlp"), "has fc1, a Conv2d, whose function is not known"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_not_understood_is_refused_by_name_and_nothing_changes(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = nn.ModuleDict({"fine": sequential(), "mlp": make()})
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=f"(?s)'mlp', a {type(model['mlp']).__name__}, .*{message}"):
        upcycle_(model, "*", **FOUR)
    assert dict(model.named_modules()) == before


def test_weights_that_another_module_shares_are_refused() -> None:
    model = nn.ModuleDict({"mlp": sequential(), "head": nn.Linear(DIM, HIDDEN)})
    model["head"].weight = model["mlp"][0].weight
    with pytest.raises(ValueError, match=r"'mlp', a Sequential, shares weights with another module, 0.weight"):
        upcycle_(model, "mlp", **FOUR)
