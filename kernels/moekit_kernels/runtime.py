"""Starts Triton kernels, or records their launches.

Every kernel is started by :func:`launch`. Inside :func:`record` nothing runs: the launches are collected,
so that tools can compile exactly what would run on a GPU, from meta tensors, on a machine without one. How little a
launch costs on the host: :mod:`moekit_kernels.prepared`.
"""

import functools
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

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
    _prepared_start()(kernel, grid, arguments, num_warps, num_stages)


@functools.cache
def _prepared_start() -> Callable[[Any, tuple[int, ...], Mapping[str, Any], int, int], None]:
    from moekit_kernels.prepared import start  # imports Triton, which may be absent

    return start
