"""What compiled code of a default configuration must not do."""

from collections.abc import Iterator

from benchmarks.compiled.code import Code
from benchmarks.compiled.exceptions import SpillException
from moekit_kernels.targets import Target

# The instruction that multiplies 16-bit tiles at full speed, and the least rows of a tile that it takes.
MATRIX_INSTRUCTION = {"sm_80": ("HMMA", 1), "sm_90": ("HGMMA", 64), "sm_100": ("UTCMMA", 64), "gfx942": ("MFMA", 1)}
TENSOR_MEMORY = 512
"""Columns of tensor memory of a processor of sm_100."""


def broken_laws(
    code: Code, target: Target, exception: SpillException | None = None, *, asynchronous: bool = False
) -> Iterator[str]:
    """Yields one sentence for each law that ``code`` breaks on ``target``.

    No register may live in local memory (or not more than an exception allows), memory must suffice, and products of
    16-bit tiles must use the target's matrix instruction. Tiles of fewer than 64 rows, for decoding, are too small for
    those of sm_90 and sm_100 and must use ``HMMA`` there.

    What a descriptor describes must come through the copy engine where there is one. With ``asynchronous``, operands
    that come through pointers must be copied to shared memory while others are multiplied (``LDGSTS``): a gather that
    lost this is several times slower, and nothing else shows it. A loop that is fused with the one inside must be so,
    and the inner one must not be empty.
    """
    spills, stack = (0, 0) if exception is None else (exception.spills, exception.stack)
    if code.spills > spills or code.stack > stack:
        allowed = "" if exception is None else f" (an exception allows {spills} and {stack})"
        yield f"spills: {code.spills} instructions or registers, {code.stack} bytes of stack{allowed}."
    if code.shared > target.shared_memory:
        yield f"needs {code.shared} bytes of shared memory, {target.name} has {target.shared_memory}."
    if code.tensor_memory > TENSOR_MEMORY:
        yield f"needs {code.tensor_memory} columns of tensor memory, {target.name} has {TENSOR_MEMORY}."
    if code.dots:
        name, rows = MATRIX_INSTRUCTION[target.name]
        instruction = name if any(m >= rows for m, _, _ in code.dots) else "HMMA"
        if not code.instructions[instruction]:
            yield f"multiplies tiles {code.dots} without {instruction}."
    loads, copies = code.operands["descriptors"], code.instructions.get("UTMALDG", 0)
    if target.tma and copies < loads:
        yield f"brings {loads} operands through descriptors, but has {copies} UTMALDG."
    if asynchronous and code.operands["pointers"] and not code.instructions.get("LDGSTS", 0):
        yield f"brings {code.operands['pointers']} operands through pointers without LDGSTS: nothing is loaded ahead."
    yield from code.loop_faults
