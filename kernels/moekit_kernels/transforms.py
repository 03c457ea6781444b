"""Whether a tensor is inside a transform: ``torch.func``, forward mode, autograd."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


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
