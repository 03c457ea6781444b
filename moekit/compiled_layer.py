"""The short way of a layer in compiled code: router, plan and experts as one operation.

Each operation of a compiled graph costs its wrapper, and each function, class and setting that the compiler reads while
it traces costs a guard in every call; for few tokens that is more than the whole layer costs in eager code. So a layer
of common parts is traced as :func:`~moekit_kernels.routed_ffn.routed_ffn`, which starts the same kernels with the same
numbers. Any other layer, and any call that it would not serve, is traced part by part, with its checks and messages.
"""

from typing import cast

import torch
from torch import Tensor, nn

from moekit.experts.ffn import FFNExperts
from moekit.routers.gate import is_unhooked, plain_linear
from moekit.routers.top_k import TopKRouter
from moekit_kernels.activations import Activation
from moekit_kernels.activations.activation import ACTIVATIONS
from moekit_kernels.availability import triton_is_installed
from moekit_kernels.impl import KERNEL_DTYPES
from moekit_kernels.routed_ffn import routed_ffn
from moekit_kernels.routing.checks import LINEAR_LIMITS
from moekit_kernels.transforms import is_exported

_MAX_EXPERTS, _MAX_TOP_K = cast(tuple[int, int], LINEAR_LIMITS[1:])
_TRITON_IS_INSTALLED = triton_is_installed()


def compiled_call(router: nn.Module, experts: nn.Module, x: Tensor, impl: str) -> list[Tensor] | None:
    """Computes a layer as one operation, while ``torch.compile`` traces it.

    It serves a :class:`~moekit.TopKRouter` without noise whose gate a kernel may multiply by (see
    :func:`~moekit.routers.gate.plain_linear`) and :class:`~moekit.FFNExperts`, both without hooks or a replaced
    ``forward``, that Triton kernels compute, outside of autocast and of ``torch.export``, whose programs may be moved
    to devices without Triton.

    Args:
        router: What stands in the layer's slot.
        experts: What stands there.
        x: Tokens ``(T, D)``.
        impl: Of the layer.

    Returns:
        What :func:`~moekit_kernels.routed_ffn.routed_ffn` returns; None where the layer is to be traced part by part.
    """
    # What is read here is guarded in every call of the compiled code: settings that change what it does, and no more.
    if type(router) is not TopKRouter or type(experts) is not FFNExperts or is_exported():
        return None
    if not _are_triton(x, (router.impl, impl, impl if experts.impl == "auto" else experts.impl)):
        return None
    if x.dtype not in KERNEL_DTYPES or torch.is_autocast_enabled(x.device.type):
        return None
    if router.training and (router.noise_gate is not None or router.jitter > 0):
        return None
    named = experts.activation
    activation = ACTIVATIONS.get(named) if isinstance(named, str) else named
    if not isinstance(activation, Activation) or not activation.has_triton:
        return None
    weights = (experts.up_proj, experts.down_proj, experts.up_bias, experts.down_bias)
    if not (is_unhooked(router) and is_unhooked(experts) and _fit(x, weights, activation)):
        return None
    num_experts = weights[0].shape[0]
    gate = plain_linear(router.gate, x, num_experts)
    if gate is None or gate[0].dtype not in KERNEL_DTYPES or num_experts > _MAX_EXPERTS or router.top_k > _MAX_TOP_K:
        return None
    return routed_ffn(x, *gate, weights, router.route_options(), activation.name, experts.recompute)


def _are_triton(x: Tensor, impls: tuple[str, ...]) -> bool:
    """Returns whether every choice of an implementation means Triton for tokens ``x``."""
    for impl in impls:
        if impl != "triton" and not (impl == "auto" and x.is_cuda):
            return False
    return _TRITON_IS_INSTALLED


def _fit(x: Tensor, weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None], activation: Activation) -> bool:
    """Returns whether the experts' weights are plain tensors that fit each other and the tokens."""
    up_proj, down_proj, up_bias, down_bias = weights
    if x.ndim != 2 or up_proj.ndim != 3 or down_proj.ndim != 3:
        return False
    num_experts, out_dim, hidden = down_proj.shape
    rows = 2 * hidden if activation.gated else hidden
    expected = (
        (up_proj, (num_experts, rows, x.shape[1])),
        (down_proj, (num_experts, out_dim, hidden)),
        (up_bias, (num_experts, rows)),
        (down_bias, (num_experts, out_dim)),
    )
    for weight, shape in expected:
        if weight is None:
            continue
        if type(weight) not in (Tensor, nn.Parameter) or weight.shape != shape:
            return False
        if weight.dtype != x.dtype or weight.device != x.device:
            return False
    return True
