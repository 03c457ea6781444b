"""Watches a call of an operation, and records what it allocates and starts; see :mod:`repeated`."""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moekit_kernels import prepared
from moekit_kernels.arrivals import num_counters_at
from moekit_kernels.call_record import Buffer, CallRecord, Output, Pointer, Step, View

_aten: Any = torch.ops.aten
_ALLOCATIONS = frozenset(
    {
        _aten.empty.memory_format,
        _aten.empty_like.default,
        _aten.empty_strided.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    }
)


def watch(
    compute: Callable[..., Any], arguments: tuple[Any, ...], tensors: tuple[Tensor, ...]
) -> tuple[Any, CallRecord | None]:
    """Computes, and records how.

    Args:
        compute: A function without side effects.
        arguments: What it is called with.
        tensors: The tensors among them.

    Returns:
        Its result, and the record; None if the call does more than allocate, copy one of ``tensors``, view and launch,
        if a launch was not prepared, or if it is not clear which tensor a pointer belongs to.
    """
    call = _Watch(tensors)
    with prepared.watch_starts(call.started), call:
        output = compute(*arguments)
    return output, call.record(output)


class _Span(NamedTuple):
    """The memory of a tensor or a buffer: addresses from ``begin`` to before ``end``."""

    begin: int
    end: int

    def holds(self, address: int) -> bool:
        return self.begin <= address < self.end


class _Watch(TorchDispatchMode):
    """Collects allocations, by the calls of torch's operators, and launches.

    A buffer may lie where an earlier one was freed, so addresses are looked up when they are used, the newest first.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._tensors = tensors
        self._inputs = [_span(tensor) for tensor in tensors]
        self._device = tensors[0].device if tensors else None
        self._buffers: list[Buffer] = []
        self._spans: list[_Span] = []
        self._launches: list[tuple[int, prepared.Start, tuple[Pointer, ...]]] = []
        self._num_counters: int | None = None
        self._can_repeat = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS and result.device == self._device:
            self._allocated(result)
        elif func is _aten.clone.default and (copied := self._place_of(args[0])) is not None:
            self._allocated(result, copied)
        elif not _is_view(func):
            self._can_repeat = False
        return result

    def _place_of(self, tensor: Tensor) -> int | None:
        """Returns which tensor of the call this is; None if it is none of them."""
        return next((place for place, each in enumerate(self._tensors) if each is tensor), None)

    def _allocated(self, tensor: Tensor, copied: int | None = None) -> None:
        if tensor.numel() > 0:
            self._buffers.append(Buffer(tuple(tensor.shape), tensor.stride(), tensor.dtype, copied))
            self._spans.append(_span(tensor))

    def started(self, launch: prepared.Start | None) -> None:
        """Records a launch; None is one that was not prepared."""
        if launch is None:
            self._can_repeat = False
            return
        pointers: list[Pointer] = []
        values = list(launch.values)
        for place, value in enumerate(values):
            if not isinstance(value, Tensor):
                continue
            values[place] = 0
            address = value.data_ptr()
            if address == 0:  # of a tensor without elements
                continue
            pointer = self._pointer(place, address)
            if pointer is None:
                self._can_repeat = False
                return
            pointers.append(pointer)
        self._launches.append((len(self._buffers), launch._replace(values=tuple(values)), tuple(pointers)))

    def _pointer(self, place: int, address: int) -> Pointer | None:
        buffer = self._buffer_at(address)
        if buffer is not None:
            return Pointer(place, len(self._inputs) + 1 + buffer, address - self._spans[buffer].begin)
        sources = [source for source, span in enumerate(self._inputs) if span.holds(address)]
        if len(sources) == 1:
            return Pointer(place, sources[0], address - self._inputs[sources[0]].begin)
        count = num_counters_at(address)
        if sources or count is None:
            return None
        self._num_counters = max(count, self._num_counters or 0)
        return Pointer(place, len(self._inputs), 0)

    def _buffer_at(self, address: int) -> int | None:
        newest_first = reversed(range(len(self._spans)))
        return next((number for number in newest_first if self._spans[number].holds(address)), None)

    def record(self, result: Any) -> CallRecord | None:
        """Returns the record of the call that returned ``result``."""
        parts, make = _parts(result)
        if not self._can_repeat or not all(isinstance(part, Tensor) for part in parts):
            return None
        outputs = [self._output(part) for part in cast(list[Tensor], parts)]
        if None in outputs:
            return None
        kept = {output.buffer for output in cast(list[Output], outputs)}
        begin, steps = 0, list[Step]()
        freed = self._freed(kept)
        for (end, launch, pointers), numbers in zip(self._launches, freed, strict=True):
            steps.append(Step(tuple(self._buffers[begin:end]), launch, pointers, numbers))
            begin = end
        return CallRecord(
            tuple(steps), tuple(self._buffers[begin:]), self._num_counters, tuple(cast(list[Output], outputs)), make
        )

    def _output(self, tensor: Tensor) -> Output | None:
        """Returns where a result lies; None if it is no buffer of this call. One without elements gets its own."""
        layout = Buffer(tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 and tensor.device == self._device:
            self._buffers.append(layout)
            return Output(len(self._buffers) - 1, None)
        number = self._buffer_at(tensor.data_ptr())
        if number is None or self._buffers[number].dtype != tensor.dtype:
            return None
        if self._buffers[number]._replace(copied=None) == layout:
            return Output(number, None)
        offset = (tensor.data_ptr() - self._spans[number].begin) // tensor.element_size()
        return Output(number, View(layout.size, layout.stride, offset))

    def _freed(self, kept: set[int]) -> list[tuple[int, ...]]:
        """Returns, for each launch, the buffers that nothing reads after it and that are not ``kept``."""
        last: dict[int, int] = {}
        begin = 0
        for step, (end, _, pointers) in enumerate(self._launches):
            first_buffer = len(self._inputs) + 1
            used = {pointer.source - first_buffer for pointer in pointers if pointer.source >= first_buffer}
            last |= dict.fromkeys(used | set(range(begin, end)), step)
            begin = end
        return [
            tuple(sorted(number for number, at in last.items() if at == step and number not in kept))
            for step in range(len(self._launches))
        ]


def _span(tensor: Tensor) -> _Span:
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return _Span(begin, begin)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return _Span(begin, begin + (last + 1) * tensor.element_size())


@functools.cache
def _is_view(func: Any) -> bool:
    """Returns whether an operator only looks at memory that is there."""
    results = func._schema.returns
    return bool(results) and all(each.alias_info is not None and not each.alias_info.is_write for each in results)


def _parts(result: Any) -> tuple[list[Any], Callable[[list[Tensor]], Any]]:
    """Returns the parts of a result, and what makes it of them."""
    if isinstance(result, tuple):
        parts = cast(tuple[Any, ...], result)
        return list(parts), getattr(type(parts), "_make", tuple)
    if isinstance(result, list):
        return cast(list[Any], result), list
    return [result], itemgetter(0)
