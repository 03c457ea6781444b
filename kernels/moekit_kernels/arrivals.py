"""Counters by which the last program of a launch knows that all others have finished.

A reduction over programs then needs no second launch: each program writes its partial result, and the one that arrives
last adds them up in their order, so the result does not depend on which one that is. See
:func:`moekit_kernels.kernel_language.arrives_last`.
"""

import torch
from torch import Tensor

from moekit_kernels.availability import interpreting
from moekit_kernels.runtime import is_recording

_LEAST = 256
_counters: dict[tuple[torch.device, int], Tensor] = {}


def arrival_counters(device: torch.device, count: int) -> Tensor:
    """Returns ``(count,)`` int32 zeros, which a kernel leaves as zeros.

    On a GPU they are kept for each stream, so that no kernel is launched to clear them: launches of one stream follow
    each other, and each leaves its counters at zero. A graph that is captured gets its own, since it may be replayed on
    any stream.
    """
    if device.type != "cuda" or interpreting() or is_recording():
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    counters = _counters.get(key)
    if counters is None or counters.shape[0] < count:
        counters = torch.zeros(max(count, _LEAST), dtype=torch.int32, device=device)
        _counters[key] = counters
    return counters[:count]
