"""What a call of an operation allocates and starts, so that it can be started again; see :mod:`repeated`."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from triton.runtime import driver

from moekit_kernels import prepared
from moekit_kernels.arrivals import arrival_counters

_triton_driver: Any = driver

_Empty = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]

# What compiled code of torch allocates by, on the current device: a third of the time of ``torch.empty_strided``.
_dynamo_guards = cast(Any, torch)._C._dynamo.guards
_fast_empty: dict[str, _Empty | None] = {
    "cuda": getattr(_dynamo_guards, "_empty_strided_cuda", None),
    "cpu": getattr(_dynamo_guards, "_empty_strided_cpu", None),
}


class Buffer(NamedTuple):
    """Memory that a call allocates.

    Attributes:
        size: Of the tensor.
        stride: Of the tensor.
        dtype: Of the tensor.
        copied: Index of the tensor of the call whose values it gets, which has another layout; None for none.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    copied: int | None = None


class Pointer(NamedTuple):
    """Where an argument of a kernel points.

    Attributes:
        place: Of the argument.
        source: Index into the tensors of the call, its counters and its buffers, in this order.
        offset: Bytes past the begin of that.
    """

    place: int
    source: int
    offset: int


class Step(NamedTuple):
    """One launch.

    Attributes:
        buffers: What is allocated before it.
        launch: What is started, with anything in the places of pointers.
        pointers: What goes there.
        freed: Indices of buffers that nothing reads after it.
    """

    buffers: tuple[Buffer, ...]
    launch: prepared.Start
    pointers: tuple[Pointer, ...]
    freed: tuple[int, ...]


class View(NamedTuple):
    """A view of a buffer, in numbers of its dtype."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Output(NamedTuple):
    """A result: a buffer by its index, or a view of it."""

    buffer: int
    view: View | None


class CallRecord(NamedTuple):
    """A call that can be started again.

    Attributes:
        steps: Its launches.
        last_buffers: What is allocated after them: results without elements, and copies that nothing reads.
        num_counters: How many arrival counters the launches use; None for none.
        outputs: The results.
        make: Makes of them what the operation returns.
    """

    steps: tuple[Step, ...]
    last_buffers: tuple[Buffer, ...]
    num_counters: int | None
    outputs: tuple[Output, ...]
    make: Callable[[list[Tensor]], Any]

    def kernels(self) -> list[Any] | None:
        """Returns the compiled kernels; None if Triton dropped one, or one has hooks before its run."""
        kernels = [step.launch.compiled() for step in self.steps]
        if None in kernels or any(step.launch.kernel.pre_run_hooks for step in self.steps):
            return None
        return kernels

    def start(self, kernels: list[Any], device: torch.device, tensors: tuple[Tensor, ...]) -> Any:
        """Starts ``kernels`` with ``tensors`` in place of those that were watched, and returns the results."""
        index = tensors[0].get_device()  # -1 on CPU
        stream = _triton_driver.active.get_current_stream(max(index, 0))
        empty = _fast_empty.get(device.type) or _empty_on(device)
        addresses = [tensor.data_ptr() for tensor in tensors]
        counters = None if self.num_counters is None else arrival_counters(device, self.num_counters)
        addresses.append(0 if counters is None else counters.data_ptr())
        memory: list[Any] = []
        for kernel, step in zip(kernels, self.steps, strict=True):
            buffers, (_, _, needs_scratch, grid, template), pointers, freed = step
            for size, stride, dtype, copied in buffers:
                buffer = empty(size, stride, dtype)
                if copied is not None:
                    buffer.copy_(tensors[copied])
                memory.append(buffer)
                addresses.append(buffer.data_ptr())
            values = list(template)
            for place, source, offset in pointers:
                values[place] = addresses[source] + offset
            prepared.start_compiled(kernel, needs_scratch, index, stream, grid, _NO_HOOKS, values)
            for number in freed:
                memory[number] = None
        for size, stride, dtype, copied in self.last_buffers:
            buffer = empty(size, stride, dtype)
            memory.append(buffer if copied is None else buffer.copy_(tensors[copied]))
        return self.make(
            [memory[number] if view is None else memory[number].as_strided(*view) for number, view in self.outputs]
        )


_NO_HOOKS = (None, None, None)


def _empty_on(device: torch.device) -> _Empty:
    def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device=device)

    return empty


def settings(device: torch.device) -> tuple[Hashable, ...] | None:
    """Returns what launches on ``device`` depend on beside their arguments; None where a call has to be computed.

    That is so where launches must pass :func:`prepared.start`, while a CUDA graph is captured, which has counters of
    its own, and where another device is the current one.
    """
    if device.type == "cuda" and (
        torch.cuda.is_current_stream_capturing() or _triton_driver.active.get_current_device() != device.index
    ):
        return None
    return prepared.settings()
