"""Hard routing: one expert per token, and a choice of how the router learns."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_choice, check_top_k
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import Gate, router_logits
from moekit.routing import Routing
from moekit_kernels.routing.finite import finite_logits
from moekit_kernels.routing.selection import top_k_ids

Gradient = Literal["scale", "straight_through", "none"]
GRADIENTS = ("scale", "straight_through", "none")


class HardRouter(Router):
    """Sends every token to the expert of largest probability: ``k* = argmax softmax(logits)``.

    | gradient | gate, value | gradient to the router |
    |---|---|---|
    | ``"scale"`` | ``p_k*`` | through ``p_k*`` (Switch) |
    | ``"straight_through"`` | 1 | that of ``p_k*`` |
    | ``"none"`` | 1 | none; supervise ``routing.logits`` instead |

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        gradient: See the table.
        gate_hidden_dim: Makes the gate a two-layer MLP, ``W_2 relu(W_1 x)``.
        gate_bias: Whether the gate has biases.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> router = HardRouter(16, num_experts=4, gradient="straight_through")
        >>> router(torch.randn(10, 16)).gates.unique().tolist()
        [1.0]
    """

    _checked_settings = frozenset({"gradient"})

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        gradient: Gradient = "scale",
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_top_k(1, num_experts)
        self.num_experts = num_experts
        self.top_k = 1
        self.gradient: Gradient = gradient
        self._check_settings()
        self.gate = Gate(
            dim,
            num_experts,
            hidden_dim=gate_hidden_dim,
            bias=gate_bias,
            init_scale=init_scale,
            device=device,
            dtype=dtype,
        )
        self._make_read_only("num_experts", "top_k", "input_ndim")

    def reset_parameters(self) -> None:
        """Draws the gate's weights anew."""
        reset_parameters(self.gate)

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes nothing.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates and ids ``(T, 1)``, logits and probabilities ``(T, E)``.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device.
        """
        finite = finite_logits(router_logits(self.gate, x, self.num_experts))
        logits, valid = finite.logits, finite.valid
        probs = F.softmax(logits, dim=-1)
        ids = top_k_ids(logits, 1)  # the order of the probabilities, without their rounding
        gates = probs.gather(-1, ids)
        if self.gradient == "straight_through":
            gates = 1 + (gates - gates.detach())
        elif self.gradient == "none":
            gates = torch.ones_like(gates)
        return Routing(finite.mark(gates), ids, logits, finite.clear(probs), valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, gradient={self.gradient!r}"

    def _check_settings(self) -> None:
        check_choice("gradient", self.gradient, GRADIENTS)
