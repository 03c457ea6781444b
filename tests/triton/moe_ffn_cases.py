"""Arguments of the expert FFN for the tests of its Triton kernels, and the exact answers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn, moe_ffn_reference
from moekit_kernels.plan import DispatchPlan
from tests.oracles import NAIVE_ACTIVATIONS
from tests.strategies import FFNCase, Routed, ffn_case, routed
from tests.triton.tolerances import assert_near

LEAVES = ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias")
IDS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3], [2, 3], [3, 0]])  # expert 1 gets none
KEPT = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)


def small_case(activation: str = "swiglu", bias: bool = True) -> FFNCase:
    """Returns seven tokens, four experts, odd widths; unassigned slots, and a token without any other."""
    return ffn_case(Routed(IDS, KEPT, 4, 0), 20, 12, 17, activation, bias)


@st.composite
def cases(draw: st.DrawFn) -> FFNCase:
    """Draws cases of every activation; widths below, at and above a tile of the interpreter."""
    widths = st.sampled_from([1, 5, 16, 33])
    activation = draw(st.sampled_from(sorted(NAIVE_ACTIVATIONS)))
    return ffn_case(draw(routed(19)), draw(widths), draw(widths), draw(widths), activation, draw(st.booleans()))


def some_gradient(out: Tensor) -> Tensor:
    """Returns normal numbers that every dtype holds without rounding, the same for every output of one shape."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)


class Operands(NamedTuple):
    """The tensors of a case in one dtype on one device.

    Attributes:
        leaves: Floating tensors by name; gates are float32 at least, as routers make them.
        plan: The rows of each expert.
        activation: A name.
    """

    leaves: dict[str, Tensor]
    plan: DispatchPlan
    activation: str

    def exactly(self, function: Callable[[Tensor], Tensor] = Tensor.clone) -> "Operands":
        """Returns the same numbers in float64, as fresh leaves; or a function of them."""
        leaves = {name: function(t.detach().double()).requires_grad_() for name, t in self.leaves.items()}
        return self._replace(leaves=leaves)

    def run(self, function: Callable[..., Tensor] = moe_ffn, **options) -> Tensor:
        """Returns the output; of the Triton kernels unless ``function`` or ``impl`` is another."""
        options = {"impl": "triton"} | options if function is moe_ffn else options
        return function(self.leaves["x"], self.leaves["gates"], self.plan, self.weights, self.activation, **options)

    @property
    def weights(self) -> ExpertWeights:
        """The leaves of the experts."""
        return ExpertWeights(*(self.leaves.get(name) for name in LEAVES[2:]))

    def run_with_gradients(
        self, function: Callable[..., Tensor] = moe_ffn, grad: Callable[[Tensor], Tensor] = some_gradient, **options
    ) -> dict[str, Tensor]:
        """Returns the output and the gradients of all leaves for ``grad(output)``."""
        out = self.run(function, **options)
        gradients = torch.autograd.grad(out, tuple(self.leaves.values()), grad(out))
        return {"out": out.detach()} | dict(zip(self.leaves, gradients, strict=True))


def operands_of(case: FFNCase, dtype: torch.dtype, device: torch.device) -> Operands:
    """Returns the tensors of a case."""
    leaves = {name: t.detach().to(device).requires_grad_() for name, t in case.leaves(dtype).items()}
    plan = case.routed.plan
    tensors = {name: t.to(device) for name, t in plan._asdict().items() if isinstance(t, Tensor)}
    return Operands(leaves, plan._replace(**tensors), case.activation)


def check(operands: Operands, grad: Callable[[Tensor], Tensor] = some_gradient, **options) -> None:
    """Holds the Triton kernels to the float64 reference of the same operands, in output and all gradients."""
    dtype = operands.leaves["x"].dtype
    actual = operands.run_with_gradients(grad=grad, **options)
    assert actual["out"].dtype == dtype
    assert all(actual[name].dtype == leaf.dtype for name, leaf in operands.leaves.items())
    expected = operands.exactly().run_with_gradients(moe_ffn_reference, grad)
    # Without signs nothing cancels: that is how large the terms are.
    terms = operands.exactly(Tensor.abs).run_with_gradients(moe_ffn_reference, lambda out: grad(out).abs())
    for name, value in expected.items():
        few = 0 < value.numel() < 64
        least = terms[name].nan_to_num().norm().item() / value.numel() ** 0.5 if few else 0.0
        assert_near(actual[name], value, dtype, name, least)
