"""Whether a call is traced, and whether a tensor is inside a transform: ``torch.func``, forward mode, autograd."""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack  # pyright: ignore
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore
_compiler: Any = torch.compiler
_tracer: Callable[[], object] = torch._C._get_tracing_state  # pyright: ignore


def is_traced() -> bool:
    """Returns whether a graph is made of the call, so that no value may be read and no size depend on one.

    By ``torch.compile``, ``torch.export``, ``make_fx`` (on real tensors too, whose type tells nothing) or
    ``torch.jit.trace``.
    """
    # First, because the compiler evaluates it and does not trace what follows.
    if torch.compiler.is_compiling():
        return True
    if _tracer() is not None:
        return True
    if not (_dispatch_modes() or _function_modes()):
        return False
    # It is loaded if make_fx is used.
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return proxies is not None and proxies.get_proxy_mode() is not None


def is_exported() -> bool:
    """Returns whether ``torch.export`` traces the call.

    In torch 2.11 code that ``torch.compile`` traces reads ``torch.compiler.is_exporting()`` as True, too.
    """
    return _compiler._is_exporting_flag


def is_wrapped(tensor: Tensor) -> bool:
    """Returns whether a transform of ``torch.func`` wraps the tensor, and so hides its values."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))  # pyright: ignore


def may_be_differentiated(tensor: Tensor) -> bool:
    """Returns whether a derivative may go through the tensor, in any mode; True in compiled code, which cannot tell."""
    if torch.compiler.is_compiling() or is_wrapped(tensor):
        return True
    # Duals have a level of forward mode and need not require gradients.
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return True
    return tensor.requires_grad and torch.is_grad_enabled()
