"""Autocast for the operations of this package, as torch applies it to its own matrix products."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor


def autocast_is_on(device_type: str) -> bool:
    """Returns whether autocast is enabled for a type of device; never on the meta device, which has none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turns autocast off for a block that must compute in the precision of its operands."""
    return torch.autocast(device_type, enabled=False) if autocast_is_on(device_type) else nullcontext()


@overload
def autocast(x: Tensor) -> Tensor: ...
@overload
def autocast(x: None) -> None: ...
def autocast(x: Tensor | None) -> Tensor | None:
    """Casts ``x`` to the autocast dtype of its device where autocast is on; float64 and None stay."""
    if x is None or x.dtype == torch.float64 or not autocast_is_on(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
