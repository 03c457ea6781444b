"""A Triton driver that starts nothing: binder, cache keys and launchers run as on an H100, on tensors of the CPU.

Kernels are compiled for sm_90 as ever, but never loaded; a launch calls the hooks, asks the allocator for scratch
memory, is noted, and returns. What kernels would write is left as it was, so outputs must not be read.
"""

import contextlib
import importlib.util
from collections.abc import Generator
from typing import Any
from unittest.mock import patch

import torch
from triton import runtime
from triton.backends.compiler import GPUTarget
from triton.runtime import _allocation

from moekit_kernels import runtime as our_runtime
from moekit_kernels.plan import op as plan_op
from moekit_kernels.targets import SM_90

_MAX_THREADS = 1024


class _Utils:
    """What a driver knows of its device."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SM_90.shared_memory,
            "multiprocessor_count": SM_90.processors,
            "warpSize": SM_90.warp_size,
            "max_num_regs": 65536,
        }

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, object, int, int, int]:
        return object(), object(), 0, 0, _MAX_THREADS

    def unload_module(self, module: object) -> None: ...


class StubLauncher:
    """Stands for one loaded kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.name = metadata.name
        self.scratch = metadata.global_scratch_size
        self.align = metadata.global_scratch_align

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: object,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        """Notes a launch."""
        if self.scratch > 0:
            _allocation._allocator.get()(x * y * z * self.scratch, self.align, stream)
        if enter_hook is not None:
            enter_hook(launch_metadata)
        runtime.driver.active.names.append(self.name)
        if exit_hook is not None:
            exit_hook(launch_metadata)


class StubDriver:
    """Stands for the driver of an H100.

    Attributes:
        names: Of the kernels that were started, in their order.
        launcher_cls: Triton makes one for each loaded kernel.
        utils: Properties of the device; loads nothing.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.launcher_cls = StubLauncher
        self.utils = _Utils()

    def get_current_target(self) -> GPUTarget:
        """Returns the target that is compiled for."""
        return GPUTarget("cuda", int(SM_90.arch), SM_90.warp_size)

    def get_current_device(self) -> int:
        """Returns the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Returns the only stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Returns where the tensors are."""
        return torch.device("cpu")


@contextlib.contextmanager
def as_on_a_gpu() -> Generator[None]:
    """Treats CPU tensors as a GPU's where that is asked: whether kernels run there, and whether values can be read."""
    patches = [
        patch.object(our_runtime, "target_of", lambda device: SM_90),
        patch.object(plan_op, "check_range", lambda *arguments: False),
    ]
    with contextlib.ExitStack() as stack:
        for each in (*patches, *_answer_no("eager", "can_read")):
            stack.enter_context(each)
        yield


def _answer_no(module: str, function: str) -> list[Any]:
    """Returns the patch of a function of one tensor by one that returns False; none in checkouts without its module."""
    if importlib.util.find_spec(f"moekit_kernels.{module}") is None:
        return []
    return [patch(f"moekit_kernels.{module}.{function}", lambda tensor: False)]


@contextlib.contextmanager
def stubbed() -> Generator[StubDriver]:
    """Makes launches on CPU tensors go to a :class:`StubDriver`."""
    stub = StubDriver()
    before = runtime.driver._active
    runtime.driver.set_active(stub)
    try:
        with contextlib.ExitStack() as stack:
            for each in (as_on_a_gpu(), *_answer_no("repeated", "is_on_host")):
                stack.enter_context(each)
            yield stub
    finally:
        runtime.driver._active = before
