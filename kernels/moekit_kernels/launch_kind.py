"""Describes the arguments of a launch by everything that Triton compiles for, fast: a key for :mod:`prepared`.

A kind may be finer than Triton's own (then two kinds share one compiled kernel), never coarser.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import reduce
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from moekit_kernels.activations import TritonActivation

# Two activations in Triton are equal if their functions and constants are, which never change.
_CONSTANT_TYPES = frozenset({bool, int, str, NoneType, TritonActivation})
_RUNTIME_TYPES = frozenset({bool, float, NoneType})
_MOST_LAYOUTS = 256
_MOST_INTEGERS = 1 << 16
Getter = Callable[[tuple[Any, ...]], tuple[Any, ...]]


class _Layout:
    """Which arguments are tensors, integers and constants, where their types are known; compared by identity."""

    def __init__(self, types: tuple[type, ...], parameters: list[Any]) -> None:
        places: dict[str, list[int]] = {"tensors": [], "integers": [], "numbers": [], "constants": [], "floats": []}
        for place, (kind, parameter) in enumerate(zip(types, parameters, strict=True)):
            if parameter.is_constexpr:
                places["floats" if kind is float else "constants"].append(place)
            elif kind is int:
                places["numbers" if parameter.do_not_specialize else "integers"].append(place)
            elif issubclass(kind, Tensor):
                places["tensors"].append(place)
        self.tensors, self.integers, self.constants = (getter(places[n]) for n in ("tensors", "integers", "constants"))
        self.numbers, self.floats = (getter(places[n]) if places[n] else None for n in ("numbers", "floats"))


class Signature:
    """Describes the launches of one kernel.

    Args:
        kernel: A ``triton.JITFunction``; it is kept, so that its id stays its own.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._parameters: list[Any] = list(kernel.params)
        self._count = len(self._parameters)
        self._values = itemgetter(*[parameter.name for parameter in self._parameters])
        self._layouts: dict[tuple[type, ...], _Layout | None] = {}

    def kind(self, arguments: Mapping[str, Any]) -> tuple[tuple[Hashable, ...] | None, tuple[Any, ...]]:
        """Describes a launch.

        Returns:
            A key, equal for launches that one compiled kernel serves where options, driver and knobs agree, whose
            first entry is the index of the device (-1 on CPU); None if an argument is missing or not understood. And
            all arguments in the order of the kernel, compile-time constants too.
        """
        if len(arguments) != self._count:
            return None, ()
        try:
            values = self._values(arguments)
        except KeyError:
            return None, ()
        types = tuple(map(type, values))
        layout = self._layouts.get(types)
        if layout is None:
            layout = self._new_layout(types)
            if layout is None:
                return None, ()
        tensors = layout.tensors(values)
        beyond = reduce(int.__or__, map(_address, tensors)) & 15
        key = (
            tensors[0].get_device(),
            layout,
            layout.constants(values),
            tuple(map(_dtype, tensors)),
            beyond and tuple(map(_is_misaligned, tensors)),
            tuple(map(_class_of, layout.integers(values))),
            layout.numbers and tuple(map(_width_of, layout.numbers(values))),
            layout.floats and tuple(map(float.hex, layout.floats(values))),
        )
        return (key if torch.version.hip is None else (*key, *map(exceeds_2_gib, tensors))), values

    def _new_layout(self, types: tuple[type, ...]) -> _Layout | None:
        if types in self._layouts or not all(map(_is_understood, types, self._parameters)):
            return None
        if not any(issubclass(t, Tensor) for t in types):
            return None
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        return self._layouts.setdefault(types, _Layout(types, self._parameters))


class _IntegerClass(dict[int, int]):
    """What Triton compiles for, of an integer: whether it is 1, divides by 16, and its width."""

    def __missing__(self, value: int) -> int:
        if len(self) >= _MOST_INTEGERS:
            self.clear()
        self[value] = result = self.compute(value)
        return result

    def compute(self, value: int) -> int:
        return 3 if value == 1 else 4 * _width(value) + (value % 16 == 0)


class _IntegerWidth(_IntegerClass):
    """Of an integer that is not specialised: its width."""

    def compute(self, value: int) -> int:
        return _width(value)


def _width(value: int) -> int:
    return 0 if -(1 << 31) <= value < 1 << 31 else 1 if value < 1 << 63 else 2


def getter(places: list[int]) -> Getter:
    """Returns a function that picks the entries at ``places`` from a tuple, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    if not places:
        return lambda values: ()
    place = places[0]
    return lambda values: (values[place],)


def _is_understood(kind: type, parameter: Any) -> bool:
    if parameter.is_constexpr:
        return kind in _CONSTANT_TYPES or kind is float
    return kind is int or kind in _RUNTIME_TYPES or issubclass(kind, Tensor)


def _is_misaligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % 16 != 0


def exceeds_2_gib(tensor: Tensor) -> bool:
    """Returns whether the memory of a tensor is too large for the buffer loads of AMD."""
    return tensor.untyped_storage().size() > (1 << 31) - 1


_INTEGERS, _WIDTHS = _IntegerClass(), _IntegerWidth()
_class_of, _width_of = _INTEGERS.__getitem__, _WIDTHS.__getitem__
_dtype = attrgetter("dtype")
_address = Tensor.data_ptr
