"""What ``torch.autocast`` does for built-in GEMMs, for ours."""

from typing import overload

import torch
from torch import Tensor


@overload
def autocast(x: Tensor) -> Tensor: ...
@overload
def autocast(x: None) -> None: ...
def autocast(x: Tensor | None) -> Tensor | None:
    """Casts ``x`` to the autocast dtype of its device where autocast is on; float64 and None stay."""
    if x is None or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
