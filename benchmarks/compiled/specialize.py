"""From a recorded launch to what Triton's JIT would compile for it.

The JIT's own binder does it, so pointer types, integers equal to 1, divisibility by 16 and the like are determined by
the code that does so on a GPU.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from moekit_kernels.runtime import Launch
from moekit_kernels.targets import Target


class Specialization(NamedTuple):
    """One kernel as it is compiled: plain values, so that it can be sent to another process.

    Attributes:
        module: Where the kernel is defined.
        name: Of the kernel.
        target: What it is compiled for.
        signature: Type of each parameter; ``"constexpr"`` for compile-time constants.
        constants: Value of each constant, by path into the parameters.
        attributes: What is known of the others, by path: ``[["tt.divisibility", 16]]``.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    module: str
    name: str
    target: Target
    signature: Mapping[str, str]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler. Products and sums may be fused: Triton's default today, which is to change."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    @property
    def key(self) -> str:
        """Equal for launches that run the same code."""
        return repr((self.module, self.name, self.target.name, *self[3:]))

    @property
    def kernel(self) -> JITFunction[Any]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def copies_asynchronously(self) -> bool:
        """Whether loads through pointers must be asynchronous copies: rows are known to be aligned, and pipelined."""
        aligned = all(
            (i,) in self.attributes or (i,) in self.constants
            for i, parameter in enumerate(self.kernel.params)
            if parameter.name.startswith("stride_")
        )
        return aligned and self.num_stages > 1 and self.target.backend == "cuda"

    def declared_constants(self) -> dict[str, Any]:
        """Returns the ``tl.constexpr`` parameters by name, without those that became constants by their value."""
        parameters = self.kernel.params
        return {parameters[i].name: v for (i, *_), v in self.constants.items() if parameters[i].is_constexpr}


def gpu_target(target: Target) -> GPUTarget:
    """Returns Triton's own description of ``target``."""
    return GPUTarget(target.backend, target.arch, target.warp_size)


def specialize(launch: Launch, target: Target) -> Specialization:
    """Returns what is compiled for ``launch`` on ``target``; a meta tensor counts as starting at address 0.

    Raises:
        ValueError: If the kernel was made for Triton's interpreter.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(
            f"launch.kernel must be a compiled kernel, a JITFunction, got {type(kernel).__name__}: "
            "unset TRITON_INTERPRET, which must happen before the kernels are imported."
        )
    backend = make_backend(gpu_target(target))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {"enable_fp_fusion": True}
    bound, types, _ = bind(**launch.arguments)
    _, signature, constants, attributes = kernel._pack_args(backend, options, bound, types, options)
    return Specialization(
        kernel.module,
        kernel.__name__,
        target,
        signature,
        constants,
        {path: attribute for path, attribute in attributes.items() if attribute},
        launch.num_warps,
        launch.num_stages,
    )
