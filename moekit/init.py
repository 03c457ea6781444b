"""Initial weights."""

import math

from torch import Tensor, nn


def scaled_normal_(weight: Tensor, fan_in: int, scale: float) -> None:
    """Fills ``weight`` from a normal of variance ``scale / fan_in``, truncated at two standard deviations.

    The fan-in is given because that of stacked expert weights ``(E, out, in)`` cannot be read off their shape.
    """
    std = math.sqrt(scale / max(fan_in, 1))
    if std == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def reset_parameters(module: nn.Module) -> None:
    """Draws the weights of ``module`` anew.

    Calls its ``reset_parameters``; where it has none (a wrapper), those of the modules in it.
    """
    own = getattr(module, "reset_parameters", None)
    if callable(own):
        own()
        return
    for child in module.children():
        reset_parameters(child)
