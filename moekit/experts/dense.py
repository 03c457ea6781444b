"""The dense feed-forward network: a single expert, and the usual shared expert."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_positive, check_width
from moekit.experts.activation import ActivationLike, activation_function, check_same_rows, is_gated
from moekit.init import reset_layer
from moekit.settings import SettingsModule
from moekit_kernels.activations.activation import label


class FFN(SettingsModule):
    """A feed-forward network for every token, usable as shared expert (DeepSeekMoE).

    ``y = W_down act(W_up x)``, times ``sigmoid(w x)`` with ``gated=True`` (Qwen2-MoE's shared expert gate).
    See https://arxiv.org/abs/2401.06066.

    Args:
        dim: Width of the tokens, ``D``.
        hidden_dim: Hidden width, ``F``.
        activation: As in :class:`~moekit.experts.ffn.FFNExperts`.
        bias: Whether both layers have biases.
        gated: Whether the output is weighted per token by a sigmoid gate.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a width is below 1 or ``activation`` is unknown.
    """

    _checked_settings = frozenset({"activation"})

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: ActivationLike = "swiglu",
        bias: bool = False,
        gated: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("hidden_dim", hidden_dim)
        self.dim = dim
        self.activation: ActivationLike = activation
        self._gated_activation = is_gated(activation)
        up_rows = 2 * hidden_dim if self._gated_activation else hidden_dim
        self.up_proj = nn.Linear(dim, up_rows, bias=bias, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=bias, device=device, dtype=dtype)
        self.gate = nn.Linear(dim, 1, bias=False, device=device, dtype=dtype) if gated else None
        self._make_read_only("dim")

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        for layer in (self.up_proj, self.down_proj, self.gate):
            if layer is not None:
                reset_layer(layer, nn.Linear)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Applies the network to every token.

        Args:
            x: Tokens ``(..., D)``.

        Returns:
            A tensor of the shape of ``x``.

        Raises:
            ValueError: If ``x`` is not ``dim`` wide.
        """
        check_width("x", x, self.dim)
        y = self.down_proj(activation_function(self.activation)(self.up_proj(x)))
        return y if self.gate is None else F.sigmoid(self.gate(x)) * y

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"activation={label(self.activation)}"

    def _check_settings(self) -> None:
        check_same_rows(self.activation, gated=self._gated_activation)
