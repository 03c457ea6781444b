"""Gates: the small networks that turn a router input into router logits."""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
import torch.nn.modules.module as module_hooks
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from moekit.checks import check_floating, check_positive, check_rank, check_same_device, check_width
from moekit.init import reset_layer, scaled_normal_
from moekit.routers.by_rows import linear_by_rows, serves
from moekit.settings import SettingsModule
from moekit_kernels.autocast import autocast_is_on
from moekit_kernels.transforms import is_exported

_INPUT = "router_input (x unless given)"


class Gate(SettingsModule):
    """Computes router logits by a linear layer, or by a two-layer MLP, in float32 or wider.

    ``logits = W x`` or ``logits = W_2 relu(W_1 x)``. Whatever stands in ``layers`` is called, so a wrapper (LoRA,
    activation checkpointing, FSDP, a compiled module) may replace a layer. The product is taken in float32 also under
    autocast and in half-precision models: Switch Transformers, section 2.4 (selective precision,
    https://arxiv.org/abs/2101.03961). Weights start from a truncated normal of variance
    ``init_scale / fan_in`` (there: 0.1), biases at zero.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        hidden_dim: Width of the hidden layer; no hidden layer by default.
        bias: Whether the layers have biases.
        init_scale: See above; 0 starts from uniform probabilities, as in Shazeer 2017.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a width is below 1.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        hidden_dim: int | None = None,
        bias: bool = False,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("num_experts", num_experts)
        self.dim = dim
        widths = [dim, num_experts]
        if hidden_dim is not None:
            check_positive("hidden_dim", hidden_dim)
            widths.insert(1, hidden_dim)
        self.layers = nn.ModuleList(
            _Linear(fan_in, fan_out, bias, init_scale, device, dtype) for fan_in, fan_out in pairwise(widths)
        )
        self._make_read_only("dim")

    def reset_parameters(self) -> None:
        """Draws the weights anew and sets the biases to zero."""
        for layer in self.layers:
            reset_layer(layer, _Linear)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """Returns the router logits, float32 or wider.

        Raises:
            ValueError: If ``x`` is not floating, not ``dim`` wide, or on another device.
        """
        check_floating(_INPUT, x)
        check_width(_INPUT, x, self.dim)
        if not autocast_is_on(x.device.type):
            return self._logits(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(F.relu(x) if place else x)
        return x


def make_gate(
    gate: nn.Module | None,
    dim: int,
    num_experts: int,
    *,
    hidden_dim: int | None,
    bias: bool,
    init_scale: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Returns the gate of a router: the one passed in, or else a :class:`Gate` of the options.

    Raises:
        ValueError: If there is a gate and options of the built-in one too.
    """
    if gate is None:
        return Gate(
            dim, num_experts, hidden_dim=hidden_dim, bias=bias, init_scale=init_scale, device=device, dtype=dtype
        )
    if hidden_dim is not None or bias:
        raise ValueError("gate_hidden_dim and gate_bias describe the built-in gate; give them or gate, not both.")
    return gate


def router_logits(gate: nn.Module, x: Shaped[Tensor, "T ..."], num_experts: int) -> Float[Tensor, "T E"]:
    """Calls the gate of a router.

    Args:
        gate: Any module ``(T, ...) -> (T, E)``.
        x: Router input, one row per token.
        num_experts: ``E``.

    Returns:
        The logits, float32 or wider whatever the gate gives.

    Raises:
        ValueError: If the gate does not give ``(T, E)``.
    """
    logits: Tensor = gate(x)
    check_rank("router logits", logits, 2, "T, E")
    if logits.shape[-1] != num_experts:
        raise ValueError(f"gate must give num_experts={num_experts} logits, got shape {tuple(logits.shape)}.")
    return logits if logits.dtype == torch.float32 else logits.to(torch.promote_types(logits.dtype, torch.float32))


def plain_linear(gate: nn.Module, x: Tensor, num_experts: int) -> tuple[Tensor, Tensor | None] | None:
    """Returns weight and bias of a gate that is one plain linear layer, for a kernel that multiplies in its place.

    Plain means that calling the gate would compute ``x W^T + bias`` and nothing else: one layer of the class that
    :class:`Gate` builds, without hooks of its own or global ones, parametrisation, wrapper (LoRA, activation
    checkpointing, FSDP, a compiled module) or replaced ``forward``, whose weights are no tensor subclass (DTensor, a
    quantised weight) and fit ``x`` in width and device.

    Args:
        gate: The gate of a router.
        x: Its input.
        num_experts: ``E``.

    Returns:
        Weight ``(E, D)`` and bias ``(E,)``; None where the gate has to be called.
    """
    if type(gate) is not Gate or len(gate.layers) != 1 or not is_unhooked(gate):
        return None
    layer = gate.layers[0]
    # A parametrised layer, or one of FSDP, has a class of its own.
    if type(layer) is not _Linear or not is_unhooked(layer) or _any_global_hook():
        return None
    weight, bias = layer.weight, cast(Tensor | None, layer.bias)
    if not _is_plain(weight) or (bias is not None and not _is_plain(bias)):
        return None
    if x.ndim != 2 or weight.shape != (num_experts, x.shape[1]) or weight.device != x.device:
        return None
    return weight, bias


def _is_plain(weight: Tensor) -> bool:
    if type(weight) in (Tensor, nn.Parameter):
        return True
    # An export that is not strict replaces parameters by fake tensors, which stand for plain ones.
    return is_exported() and not is_traceable_wrapper_subclass(weight)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
# No public function tells; the attributes are the ones that a call of a module looks at.
_any_global_hook: Callable[[], object] = module_hooks._has_any_global_hook  # pyright: ignore[reportPrivateUsage]


def is_unhooked(module: nn.Module) -> bool:
    """Returns whether calling a module calls the ``forward`` of its class and nothing else, but for global hooks."""
    attributes = module.__dict__
    for name in _HOOKS:
        if attributes.get(name):
            return False
    return "forward" not in attributes


class _Linear(nn.Linear):
    """A linear layer computed in float32 or wider.

    A subclass, so that code that resets each module by itself uses the gate's initialisation here too.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        init_scale: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.init_scale = init_scale
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        scaled_normal_(self.weight, self.in_features, self.init_scale)
        if self._bias() is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        # Checked here and not in Gate, which cannot know where a wrapper (FSDP, offloading) keeps the weights.
        weight, bias = self.weight, self._bias()
        check_same_device(_INPUT, input, "the router's weights", weight)
        if input.dtype == weight.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32):
            return F.linear(input, weight, bias)
        dtype = torch.promote_types(torch.promote_types(input.dtype, weight.dtype), torch.float32)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return linear_by_rows(input, weight, bias) if serves(input, weight) else F.linear(input.to(dtype), weight, bias)

    def _bias(self) -> Tensor | None:
        return cast(Tensor | None, self.bias)  # torch's stubs leave out that it may be None
