"""Compiles a launch for a processor that need not be present, and reads the code."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.compiler import ASTSource

from benchmarks.compiled.code import Code, read_amd, read_nvidia
from benchmarks.compiled.specialize import Specialization, gpu_target, specialize
from moekit_kernels.runtime import Launch
from moekit_kernels.targets import Target

PROGRAMS = Path(triton.backends.nvidia.__file__).parent / "bin"


def report(launch: Launch, target: Target) -> Code:
    """Compiles one recorded launch and reads its code, to choose tiles by."""
    return compile_code(specialize(launch, target))


def compile_code(specialization: Specialization) -> Code:
    """Compiles, through Triton's own cache on disk, and reads the result.

    Raises:
        Exception: What Triton raises when it cannot compile.
    """
    source = ASTSource(
        specialization.kernel,
        dict(specialization.signature),
        dict(specialization.constants),
        dict(specialization.attributes),
    )
    compiled: Any = triton.compile(source, target=gpu_target(specialization.target), options=specialization.options)
    metadata, ttir, ttgir = compiled.metadata, compiled.asm["ttir"], compiled.asm["ttgir"]
    if specialization.target.backend == "hip":
        return read_amd(compiled.asm["amdgcn"], ttir, ttgir, metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    return read_nvidia(usage, assembly, ttir, ttgir, metadata.shared, getattr(metadata, "tmem_size", None) or 0)


def _run(program: str, *arguments: str) -> str:
    return subprocess.run([PROGRAMS / program, *arguments], capture_output=True, text=True, check=True).stdout
