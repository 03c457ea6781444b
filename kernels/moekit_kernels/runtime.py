"""Starts Triton kernels, or records their launches.

Every kernel is started by :func:`launch`. Inside :func:`record` nothing runs: the launches are collected,
so that tools can compile exactly what would run on a GPU, from meta tensors, on a machine without one.
"""

import contextvars
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.targets import Target, target_of


class Launch(NamedTuple):
    """One start of a kernel.

    Attributes:
        kernel: The ``@triton.jit`` function.
        grid: Programs in each dimension.
        arguments: Every argument by name, compile-time constants too.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


class _Recording(NamedTuple):
    target: Target
    launches: list[Launch]


_recording: ContextVar[_Recording | None] = ContextVar("_recording", default=None)


@contextmanager
def record(target: Target) -> Generator[list[Launch]]:
    """Collects launches for ``target`` instead of running them; tensors may be on the meta device."""
    launches: list[Launch] = []
    token = _recording.set(_Recording(target, launches))
    try:
        yield launches
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Returns whether launches are collected, not run."""
    return _recording.get() is not None


def current_target(device: torch.device) -> Target:
    """Returns the target that launches on ``device`` are for.

    Raises:
        ValueError: If no kernel runs there.
    """
    recording = _recording.get()
    return target_of(device) if recording is None else recording.target


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], *, num_warps: int = 4, num_stages: int = 2
) -> None:
    """Starts ``kernel`` on ``grid``, on the device of its tensors; an empty grid starts nothing."""
    if 0 in grid:
        return
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(Launch(kernel, grid, dict(arguments), num_warps, num_stages))
        return
    # A copy, because the allocator of descriptors is set for the context, and other kernels have their own.
    contextvars.copy_context().run(_start, kernel, grid, arguments, num_warps, num_stages)


def _start(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], num_warps: int, num_stages: int) -> None:
    import triton

    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    triton.set_allocator(allocate)
    # Fusion of products and sums is Triton's default today; it is stated here because that is to change.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if device.type == "cpu":
        kernel[grid](**arguments, **options)
        return
    with torch.cuda.device(device):
        kernel[grid](**arguments, **options)
