"""Counters by which the last program of a launch knows that all others have finished.

A reduction over programs then needs no second launch: each program writes its partial result, and the one that arrives
last adds them up in their order, so the result does not depend on which one that is. See
:func:`moekit_kernels.kernel_language.arrives_last`.
"""

from typing import Any

import torch
from torch import Tensor

from moekit_kernels.runtime import current_target, is_recording

_LEAST = 256
_counters: dict[tuple[torch.device, int], Tensor] = {}
_stream_of: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # pyright: ignore


def arrival_counters(device: torch.device, count: int) -> Tensor:
    """Returns ``(count,)`` or more int32 zeros, which a kernel leaves as zeros.

    They are kept for each stream, so that no kernel is launched to clear them: launches of one stream follow each
    other, and each leaves its counters at zero. A graph that is captured gets its own, since it may be replayed on any
    stream, and so does the interpreter, where a kernel that fails may leave others than zeros.

    Raises:
        ValueError: If no kernel runs on ``device``.
    """
    is_gpu = device.type == "cuda"
    if is_recording() or current_target(device).backend == "interpreter":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if is_gpu and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device, _stream_of(device.index) if is_gpu and _stream_of is not None else 0)
    counters = _counters.get(key)
    if counters is None or counters.shape[0] < count:
        counters = torch.zeros(max(count, _LEAST), dtype=torch.int32, device=device)
        _counters[key] = counters
    return counters


def num_counters_at(address: int) -> int | None:
    """Returns how many counters that are kept begin at ``address``; None if none do."""
    return next((each.shape[0] for each in list(_counters.values()) if each.data_ptr() == address), None)
