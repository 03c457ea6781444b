"""Where the sections of ``python -m benchmarks gpu`` run, and how large their workloads are."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.environment import commit_of, environment
from benchmarks.shapes import DTYPES, Shape
from benchmarks.workload import Workload, draw

Left = Callable[[], float]
"""Seconds left."""

MOST_WORKERS = 16
"""Processes that compile side by side."""


def require_gpu() -> None:
    """Raises ``SystemExit`` where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks gpu needs a GPU; --rehearsal tries the command on CPU.")


class Setting(NamedTuple):
    """Where and how large.

    Attributes:
        device: Of all tensors.
        tiny: Whether sizes are cut down for a rehearsal.
        dtype: Of the cases.
        seconds: About how long each pass of each layer is repeated.
        about: Environment of the records.
        memory: Bytes that tensors may take.
        workers: Processes that compile side by side.
        least: Fewest repetitions of a pass.
    """

    device: torch.device
    tiny: bool
    dtype: str
    seconds: float
    about: dict[str, Any]
    memory: int
    workers: int
    least: int

    @staticmethod
    def real(sonicmoe: Path | None = None, commit: str | None = None) -> "Setting":
        """Returns the setting of the GPU at hand.

        Args:
            sonicmoe: A checkout of SonicMoE, whose commit the records name.
            commit: Of this code; by default what git says.

        Raises:
            SystemExit: If there is no GPU.
        """
        require_gpu()
        device = torch.device("cuda")
        about = environment(device)
        if commit is not None:
            about |= {"commit": commit, "dirty": False}
        if sonicmoe is not None:
            about["versions"]["sonicmoe"] = f"checkout {commit_of(sonicmoe)[0]}"
        memory = torch.cuda.get_device_properties(device).total_memory
        workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        return Setting(device, False, "bf16", 0.3, about, memory, workers, 5)

    @staticmethod
    def rehearsal() -> "Setting":
        """Returns the setting of a rehearsal: tiny workloads on CPU."""
        device = torch.device("cpu")
        return Setting(device, True, "fp32", 0.001, environment(device), 1 << 30, 1, 1)

    def shape(self, shape: Shape) -> Shape:
        """Returns the sizes that ``shape`` has in this setting."""
        if not self.tiny:
            return shape
        return Shape(min(shape.tokens, 6), 16, 16, min(shape.num_experts, 4), min(shape.top_k, 2))

    def draw(self, shape: Shape, skew: str = "uniform", dtype: str | None = None) -> Workload:
        """Returns a workload of this setting."""
        return draw(self.shape(shape), skew, self.device, DTYPES[dtype or self.dtype])
