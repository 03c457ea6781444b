"""Code that may spill registers, because it was measured to be faster that way: each exception cites its record."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class SpillException(NamedTuple):
    """One kernel with one tile that may spill.

    Attributes:
        kernel: Name of the ``@triton.jit`` function.
        target: Name of the processor that it is compiled for.
        triton: Version of Triton whose code was measured.
        constants: Compile-time constants that it is about, such as the tile; others may have any value.
        spills: Most spilling instructions (on AMD, registers).
        stack: Most bytes of stack a thread.
        citation: File of this repository that holds the measurement, under ``benchmarks/results`` or ``docs``.
    """

    kernel: str
    target: str
    triton: str
    constants: Mapping[str, Any]
    spills: int
    stack: int
    citation: str

    def covers(self, kernel: str, target: str, triton: str, constants: Mapping[str, Any]) -> bool:
        """Returns whether it is about this piece of code."""
        same = (kernel, target, triton) == (self.kernel, self.target, self.triton)
        return same and self.constants.items() <= constants.items()


_WIDE = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}


def _through_activation(triton: str, x_tma: bool, spills: int, stack: int) -> SpillException:
    """Tiles of 128x256x64 through the activation, measured on an H100 to be faster than 128x128x64 while 42 spilled."""
    constants = _WIDE | {"X_TMA": x_tma}
    return SpillException("moe_ffn_bwd_act_kernel", "sm_90", triton, constants, spills, stack, "docs/kernels.md")


EXCEPTIONS: tuple[SpillException, ...] = (
    _through_activation("3.6.0", False, 42, 96),
    _through_activation("3.6.0", True, 12, 32),
    _through_activation("3.8.0", False, 42, 96),
    _through_activation("3.8.0", True, 12, 32),
    _through_activation("3.9.0", False, 70, 144),
    _through_activation("3.9.0", True, 12, 32),
)
"""All exceptions. The gate fails for one that no code needs, or whose citation does not exist."""


def exception_for(
    kernel: str,
    target: str,
    triton: str,
    constants: Mapping[str, Any],
    exceptions: Iterable[SpillException] | None = None,
) -> SpillException | None:
    """Returns the first exception that covers a piece of code; of :data:`EXCEPTIONS` unless others are passed."""
    every = EXCEPTIONS if exceptions is None else exceptions
    return next((one for one in every if one.covers(kernel, target, triton, constants)), None)
