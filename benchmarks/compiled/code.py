"""What is read from compiled code, from its text alone."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.compiled.representation import TENSOR_CORE_DOT, flattened_loops, operand_loads

# What the columns of the table count, by the names of the machine code. The tensor cores of sm_100 are
# UTCHMMA (16-bit operands) and its siblings; no instruction of SASS has "tcgen05" in its name.
NVIDIA_INSTRUCTIONS = {
    "HMMA": r"HMMA(?:\.|$)",
    "HGMMA": r"HGMMA(?:\.|$)",
    "UTCMMA": r"UTC\w*MMA(?:\.|$)",
    "UTMALDG": r"UTMALDG(?:\.|$)",
    "LDGSTS": r"LDGSTS(?:\.|$)",
    "STL": r"STL(?:\.|$)",
    "LDL": r"LDL(?:\.|$)",
}
AMD_INSTRUCTIONS = {
    "MFMA": r"v_mfma_",
    "scratch": r"scratch_(?:store|load)_",
}


class Code(NamedTuple):
    """What was read from one compiled kernel.

    Attributes:
        registers: Per thread: vector registers on AMD, accumulation registers included.
        spills: Instructions that move registers to or from local memory; on AMD, spilled
            vector registers if those are more.
        stack: Bytes of local memory per thread.
        shared: Bytes of shared memory per program.
        tensor_memory: Columns of tensor memory, sm_100 alone.
        instructions: How often each instruction of interest stands in the code.
        dots: Shapes ``(M, N, K)`` of the tiles that ``tl.dot`` multiplies in 16 bits or TF32.
        operands: How many loads bring the operands of those products, through ``"descriptors"`` and ``"pointers"``.
        flattened: Loops that are to be fused with the one inside.
        loop_faults: What is wrong with those loops, one sentence each.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    tensor_memory: int
    instructions: dict[str, int]
    dots: list[tuple[int, int, int]]
    operands: dict[str, int]
    flattened: int
    loop_faults: list[str]


def read_nvidia(usage: str, assembly: str, ttir: str, ttgir: str, shared: int, tensor_memory: int) -> Code:
    """Reads what ``cuobjdump -res-usage`` and ``nvdisasm -c`` print, and Triton's own two representations."""
    counts = _count(NVIDIA_INSTRUCTIONS, _opcodes(assembly))
    flattened, faults = flattened_loops(ttir, ttgir)
    return Code(
        registers=_number(r"REG:(\d+)", usage),
        spills=counts.pop("STL") + counts.pop("LDL"),
        stack=_number(r"STACK:(\d+)", usage),
        shared=shared,
        tensor_memory=tensor_memory,
        instructions=counts,
        dots=_dots(ttir),
        operands=operand_loads(ttir),
        flattened=flattened,
        loop_faults=faults,
    )


def read_amd(assembly: str, ttir: str, ttgir: str, shared: int) -> Code:
    """Reads AMD's assembly and the metadata after it, and Triton's own two representations."""
    counts = _count(AMD_INSTRUCTIONS, [line.strip() for line in assembly.splitlines()])
    flattened, faults = flattened_loops(ttir, ttgir)
    # Scalar registers spill into lanes of vector registers, not into memory: those are no spills here.
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Code(
        registers=_number(r"\.vgpr_count:\s*(\d+)", assembly),
        spills=max(counts.pop("scratch"), spilled),
        stack=_number(r"\.private_segment_fixed_size:\s*(\d+)", assembly),
        shared=max(shared, _number(r"\.group_segment_fixed_size:\s*(\d+)", assembly)),
        tensor_memory=0,
        instructions=counts,
        dots=_dots(ttir),
        operands=operand_loads(ttir),
        flattened=flattened,
        loop_faults=faults,
    )


def _opcodes(assembly: str) -> list[str]:
    """Returns the words after the address and the predicate: ``/*0a10*/ @!P0 HGMMA.64x256x16.F32 R24, ...``."""
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", assembly, re.MULTILINE)


def _count(patterns: dict[str, str], lines: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for line, times in Counter(lines).items():
        counts.update({name: times for name, pattern in patterns.items() if re.match(pattern, line)})
    return {name: counts[name] for name in patterns}


def _number(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    if not numbers:
        raise ValueError(
            f"compiled code must contain {pattern!r}, got none: this version of Triton writes it in another way."
        )
    return max(map(int, numbers))


def _dots(ttir: str) -> list[tuple[int, int, int]]:
    products = re.findall(rf"{TENSOR_CORE_DOT}.*tensor<(\d+)x(\d+)xb?f\d+> \* tensor<\d+x(\d+)xb?f\d+>", ttir)
    return sorted({(int(m), int(n), int(k)) for m, k, n in products})
