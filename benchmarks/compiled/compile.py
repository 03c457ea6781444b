"""Compiles a launch for a processor that need not be there, and reads what came out."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.backends.nvidia
from triton.compiler import ASTSource

from benchmarks.compiled.specialize import Specialization, gpu_target, specialize
from moekit_kernels.runtime import Launch
from moekit_kernels.targets import Target

PROGRAMS = Path(triton.backends.nvidia.__file__).parent / "bin"

# What the columns of the table count, in the words of the machine code. The tensor cores of sm_100 are
# UTCHMMA (16-bit operands) and its siblings; SASS has no word with "tcgen05" in it.
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
        dots: Shapes ``(M, N, K)`` of the 16-bit tiles that ``tl.dot`` multiplies.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    tensor_memory: int
    instructions: dict[str, int]
    dots: list[tuple[int, int, int]]


def report(launch: Launch, target: Target) -> Code:
    """Compiles one recorded launch and reads it: the tool to choose tiles with."""
    return compile_code(specialize(launch, target))


def compile_code(wanted: Specialization) -> Code:
    """Compiles, through Triton's own cache on disk, and reads the result.

    Raises:
        Exception: What Triton raises when it cannot compile.
    """
    source = ASTSource(wanted.kernel, dict(wanted.signature), dict(wanted.constants), dict(wanted.attributes))
    compiled = triton.compile(source, target=gpu_target(wanted.target), options=wanted.options)
    return _read_amd(compiled) if wanted.target.backend == "hip" else _read_nvidia(compiled)


def _read_nvidia(compiled: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    counts = _count(NVIDIA_INSTRUCTIONS, _opcodes(assembly))
    return Code(
        registers=_number(r"REG:(\d+)", usage),
        spills=counts.pop("STL") + counts.pop("LDL"),
        stack=_number(r"STACK:(\d+)", usage),
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        instructions=counts,
        dots=_dots(compiled.asm["ttir"]),
    )


def _read_amd(compiled: Any) -> Code:
    assembly = compiled.asm["amdgcn"]
    counts = _count(AMD_INSTRUCTIONS, [line.strip() for line in assembly.splitlines()])
    # Scalar registers spill into lanes of vector registers, not into memory: those are no spills here.
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Code(
        registers=_number(r"\.vgpr_count:\s*(\d+)", assembly),
        spills=max(counts.pop("scratch"), spilled),
        stack=_number(r"\.private_segment_fixed_size:\s*(\d+)", assembly),
        shared=max(compiled.metadata.shared, _number(r"\.group_segment_fixed_size:\s*(\d+)", assembly)),
        tensor_memory=0,
        instructions=counts,
        dots=_dots(compiled.asm["ttir"]),
    )


def _run(program: str, *arguments: str) -> str:
    return subprocess.run([PROGRAMS / program, *arguments], capture_output=True, text=True, check=True).stdout


def _opcodes(assembly: str) -> list[str]:
    """The words after the address and the predicate: ``/*0a10*/ @!P0 HGMMA.64x256x16.F32 R24, ...``."""
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", assembly, re.MULTILINE)


def _count(patterns: dict[str, str], lines: list[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for line, times in Counter(lines).items():
        found.update({name: times for name, pattern in patterns.items() if re.match(pattern, line)})
    return {name: found[name] for name in patterns}


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    if not found:
        raise ValueError(f"compiled code must contain {pattern!r}, found none: this version of Triton writes it anew.")
    return max(map(int, found))


def _dots(ttir: str) -> list[tuple[int, int, int]]:
    products = re.findall(r"tt\.dot .*tensor<(\d+)x(\d+)xb?f16> \* tensor<\d+x(\d+)xb?f16>", ttir)
    return sorted({(int(m), int(n), int(k)) for m, k, n in products})
