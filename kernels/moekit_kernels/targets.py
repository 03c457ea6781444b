"""The properties of a processor that a kernel is compiled for."""

import functools
from typing import Any, Literal, NamedTuple, cast

import torch

from moekit_kernels.availability import interpreting


class Target(NamedTuple):
    """One family of processors.

    Attributes:
        name: Key of the table of configurations.
        backend: ``"cuda"``, ``"hip"``, or ``"interpreter"`` for Triton's own on CPU.
        arch: As ``triton.backends.compiler.GPUTarget`` takes it: 90, ``"gfx942"``.
        warp_size: Threads of a warp.
        shared_memory: Bytes that one program may use.
        tma: Whether tiles are loaded through tensor descriptors.
        processors: Multiprocessors, which is how many programs a persistent kernel is started with.
    """

    name: str
    backend: Literal["cuda", "hip", "interpreter"]
    arch: int | str
    warp_size: int
    shared_memory: int
    tma: bool
    processors: int


SM_80 = Target("sm_80", "cuda", 80, 32, 166_912, False, 108)
SM_86 = Target("sm_86", "cuda", 86, 32, 101_376, False, 84)
SM_90 = Target("sm_90", "cuda", 90, 32, 232_448, True, 132)
SM_100 = Target("sm_100", "cuda", 100, 32, 232_448, True, 148)
GFX942 = Target("gfx942", "hip", "gfx942", 64, 65_536, False, 304)
INTERPRETER = Target("interpreter", "interpreter", 0, 32, 1 << 40, False, 3)

TARGETS = {target.name: target for target in (SM_80, SM_86, SM_90, SM_100, GFX942, INTERPRETER)}
"""Every target that has configurations. ``sm_86`` stands for all processors with 99 KiB of shared memory."""


def target_of(device: torch.device) -> Target:
    """Returns the target of a device; the interpreter's for CPU tensors when ``TRITON_INTERPRET=1``.

    Raises:
        ValueError: If no kernel runs there.
    """
    target = _targets.get(device)
    if target is not None:
        return target
    if interpreting():
        return INTERPRETER
    if device.type != "cuda":
        raise ValueError(
            f'impl="triton" needs tensors on a GPU, got device {str(device)!r}: use impl="auto", '
            "or set TRITON_INTERPRET=1 before the first import to run the kernels on CPU, slowly."
        )
    index = cast(int | None, device.index)  # torch's stub leaves the None out
    if index is None:
        return _of_gpu(torch.cuda.current_device())
    _targets[device] = _of_gpu(index)
    return _targets[device]


# Of devices with an index, looked up before anything else because every launch asks several times. A GPU's does not
# change; whether kernels are interpreted is settled when they are imported.
_targets: dict[torch.device, Target] = {}


@functools.cache
def _of_gpu(index: int) -> Target:
    properties = cast(Any, torch.cuda.get_device_properties(index))
    processors = cast(int, properties.multi_processor_count)
    if torch.version.hip is not None:
        return GFX942._replace(arch=str(properties.gcnArchName).partition(":")[0], processors=processors)
    major, minor = cast(int, properties.major), cast(int, properties.minor)
    family = {(8, 0): SM_80, (9, 0): SM_90, (10, 0): SM_100, (10, 3): SM_100}.get((major, minor), SM_86)
    return family._replace(arch=10 * major + minor, processors=processors)
