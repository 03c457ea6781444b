"""The limit by mass in plain PyTorch.

Names end with the letters of their layout: T tokens, K ranked experts per token; a 1 is a column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class LimitedGates(NamedTuple):
    """What :func:`~moekit_kernels.mass.limit_to_mass` returns.

    Attributes:
        gates: ``(T, K)``, zero for a slot that is not kept; NaN for a token whose gates are NaN.
        kept: ``(T, K)``, False for a slot that the token does not use, and for all of a token whose gates are NaN.
    """

    gates: Float[Tensor, "T K"]
    kept: Bool[Tensor, "T K"]


def limit_to_mass_reference(gates: Float[Tensor, "T K"], mass: float, *, renormalize: bool = False) -> LimitedGates:
    """Keeps the first slots of each token whose gates reach ``mass`` together, and all where they do not.

    The slot ``k`` is kept if the gates before it add up to less than ``mass``: so at least one is, and none is that the
    mass does not need. With a mass of 1 or more all are.

    Args:
        gates: Probabilities of the ranked experts, largest first; NaN for a token that is routed nowhere.
        mass: Above 0.
        renormalize: Whether the gates that are kept are divided by their sum.

    Returns:
        Gates, with gradients of every order, and which slots are kept.
    """
    valid_T1 = (gates.detach() * 0).sum(-1, keepdim=True) == 0
    finite_TK = torch.where(valid_T1, gates, 0)
    fixed_TK = finite_TK.detach()
    before_TK = fixed_TK.cumsum(-1) - fixed_TK
    # From a mass of 1 on every slot is kept, whatever rounding makes of the sum of the probabilities.
    kept_TK = valid_T1 & ((before_TK < mass) if mass < 1 else torch.ones_like(before_TK, dtype=torch.bool))
    limited_TK = torch.where(kept_TK, finite_TK, 0)
    if renormalize:
        limited_TK = limited_TK / torch.where(valid_T1, limited_TK.sum(-1, keepdim=True), 1)
    return LimitedGates(torch.where(valid_T1, limited_TK, torch.nan), kept_TK)
