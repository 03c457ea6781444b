"""Calls of operations that repeat an earlier one: they start their kernels without choosing them again.

Which kernels an operation starts, on which grids and on which memory, follows from shapes, strides, dtypes and
settings, never from values: values are on the device, and nothing waits for them. So the second call of a kind is
watched (:mod:`moekit_kernels.call_record`): what it allocates, and what it passes to which compiled kernel. From the
third on the same is allocated and started, with the pointers of that call.

**Of the same kind** are calls that agree in dtype, shape, strides, device and alignment (to 16 bytes) of every tensor,
in type and value of every other argument, in torch's switch for TF32, in overrides of tile sizes and gathers, and in
what decides how launches start (:func:`moekit_kernels.prepared.settings`).

**Computed as ever** are calls on the CPU, or on another device than the current one; calls while launches are recorded,
a CUDA graph is captured, a profiler has hooks of launches, or prepared launches are switched off; and calls that do
more than allocate, view, launch and copy a tensor whose layout no kernel reads, such as the expanded gradient of a sum.

**What is kept**: at most :data:`MOST_KEPT` kinds of calls for each operation; the oldest leaves first. Neither tensors
nor compiled modules are held. Any number of threads and streams may call at once.
"""

import functools
import threading
from collections.abc import Callable, Hashable
from functools import reduce
from operator import attrgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from torch import Tensor
from torch.nn import Parameter

from moekit_kernels.launch_kind import exceeds_2_gib, getter
from moekit_kernels.overrides import num_changes
from moekit_kernels.precision import float32_precision
from moekit_kernels.runtime import is_recording

if TYPE_CHECKING:
    from moekit_kernels.call_record import CallRecord

MOST_KEPT = 256
"""Most kinds of calls that are kept for one operation."""

_MOST_LAYOUTS = 64
_TENSOR_TYPES = frozenset({Tensor, Parameter})
_PLAIN_TYPES = _TENSOR_TYPES | {NoneType, bool, int, float, str}
_shape, _dtype = attrgetter("shape"), attrgetter("dtype")
_address, _stride, _device = Tensor.data_ptr, Tensor.stride, Tensor.get_device

# In place of a record: a kind that was called once, one that is watched once more because a launch was not prepared
# yet (another thread may compile the same), and one whose calls cannot be repeated.
_CALLED, _AGAIN, _NEVER = "called", "again", "never"


class _Layout:
    """Which arguments are tensors and floats, where their types are known; compared by identity."""

    def __init__(self, types: tuple[type, ...]) -> None:
        places: dict[str, list[int]] = {"tensors": [], "floats": [], "others": []}
        for place, kind in enumerate(types):
            places["tensors" if kind in _TENSOR_TYPES else "floats" if kind is float else "others"].append(place)
        self.tensors, self.others = getter(places["tensors"]), getter(places["others"])
        self.floats = getter(places["floats"]) if places["floats"] else None
        # Subclasses of Tensor and symbols are neither: what they stand for is not in their type and value.
        self.is_plain = _PLAIN_TYPES.issuperset(types)


class Repeatable:
    """A function of tensors and plain values without side effects, which starts kernels; callable as that function.

    Args:
        compute: The function. Its first parameter that is annotated as a tensor is on the device of all.

    Raises:
        ValueError: If it has no such parameter.
    """

    def __init__(self, compute: Callable[..., Any]) -> None:
        functools.update_wrapper(self, compute)
        self._compute = compute
        hints = list(get_type_hints(compute).values())[:-1]
        if Tensor not in hints:
            raise ValueError(f"{compute.__name__} must have a parameter that is annotated as a tensor, got {hints}.")
        self._first = hints.index(Tensor)
        self._layouts: dict[tuple[type, ...], _Layout] = {}
        self._kept: "dict[Hashable, CallRecord | str]" = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Computes, or repeats an earlier computation with these tensors."""
        first = arguments[self._first]
        if is_on_host(first) or is_recording():
            return self._compute(*arguments)
        device = first.device
        types = tuple(map(type, arguments))
        layout = self._layouts.get(types) or self._new_layout(types)
        settings = _settings_of()(device) if layout.is_plain else None
        if settings is None:
            return self._compute(*arguments)
        tensors = layout.tensors(arguments)
        kind = _kind(layout, arguments, tensors, settings)
        kept = self._kept.get(kind)
        if kept in (_CALLED, _AGAIN):
            output, record = _watch_of()(self._compute, arguments, tensors)
            self._keep(kind, record or (_AGAIN if kept == _CALLED else _NEVER))
            return output
        if kept is not None and not isinstance(kept, str):
            kernels = kept.kernels()
            if kernels is not None:
                return kept.start(kernels, device, tensors)
        output = self._compute(*arguments)
        if kept != _NEVER:
            self._keep(kind, _CALLED)
        return output

    def forget(self) -> None:
        """Drops all that is kept: the next call of every kind is computed."""
        with self._lock:
            self._layouts.clear()
            self._kept.clear()

    def _new_layout(self, types: tuple[type, ...]) -> _Layout:
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        return self._layouts.setdefault(types, _Layout(types))

    def _keep(self, kind: Hashable, kept: "CallRecord | str") -> None:
        with self._lock:
            while len(self._kept) >= MOST_KEPT and kind not in self._kept:
                del self._kept[next(iter(self._kept))]
            self._kept[kind] = kept


def is_on_host(tensor: Tensor) -> bool:
    """Returns whether no compiled kernel reads a tensor: it is on CPU, or has no memory."""
    return tensor.is_cpu or tensor.is_meta


def _kind(
    layout: _Layout, arguments: tuple[Any, ...], tensors: tuple[Tensor, ...], settings: tuple[Hashable, ...]
) -> Hashable:
    dtypes = tuple(map(_dtype, tensors))
    beyond = reduce(int.__or__, map(_address, tensors)) & 15
    return (
        layout,
        layout.others(arguments),
        layout.floats and tuple(map(float.hex, layout.floats(arguments))),  # tells 0.0 from -0.0
        tuple(map(_shape, tensors)),
        tuple(map(_stride, tensors)),
        dtypes,
        tuple(map(_device, tensors)),
        beyond and tuple(address & 15 for address in map(_address, tensors)),
        torch.float32 in dtypes and float32_precision(),
        torch.version.hip is None or tuple(map(exceeds_2_gib, tensors)),
        num_changes(),
        settings,
    )


# These import Triton, which may be absent.


@functools.cache
def _settings_of() -> Callable[[torch.device], tuple[Hashable, ...] | None]:
    from moekit_kernels.call_record import settings

    return settings


@functools.cache
def _watch_of() -> "Callable[..., tuple[Any, CallRecord | None]]":
    from moekit_kernels.call_watch import watch

    return watch
