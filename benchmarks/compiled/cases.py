"""What is launched: every operation, forward and backward, at shapes that take each configuration.

The launchers run on meta tensors, which record their launches, so what is compiled is what a GPU would run.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch

from benchmarks.compiled.operations import OPERATIONS
from benchmarks.compiled.specialize import specialize
from benchmarks.compiled.survey import Recorded
from moekit_kernels.runtime import record
from moekit_kernels.targets import TARGETS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TARGET_NAMES = ["sm_80", "sm_90", "sm_100", "gfx942"]

GEMM_KERNELS = frozenset(
    {
        "few_rows_bwd_act_kernel",
        "few_rows_bwd_rest_kernel",
        "few_rows_fwd_kernel",
        "grouped_gemm_bwd_dw_kernel",
        "grouped_gemm_bwd_dw_rows_kernel",
        "grouped_gemm_fwd_kernel",
        "grouped_gemm_int8_kernel",
        "moe_ffn_bwd_act_kernel",
        "route_linear_bwd_kernel",
        "route_linear_fwd_kernel",
    }
)
"""Kernels that multiply matrices: their code must contain products of tiles."""

DESCRIPTOR_KERNELS = frozenset({"grouped_gemm_bwd_dw_rows_kernel"})
"""Kernels whose operands come through tensor descriptors: launched only for targets that have a copy engine."""

BF16_ALONE = frozenset(
    {
        "FFN clamped",
        "FFN clamped concatenated",
        "FFN decode clamped",
        "FFN decode gelu",
        "FFN geglu interleaved",
        "FFN gelu",
        "FFN mixtral",
        "FFN n-major interleaved",
        "FFN odd",
        "FFN tf32",
        "FFN tf32 few",
        "combine mixtral",
        "grouped GEMM odd",
        "int8 odd",
        "router fp32 deepseek",
        "router fp32 qwen3",
        "router odd",
        "router odd qwen3",
        "router olmoe",
        "rows odd",
    }
)
"""Cases that are compiled in bfloat16 alone: another case compiles the same kernels and tiles in float16."""


def record_all(
    targets: Iterable[str] = TARGET_NAMES, dtypes: Iterable[str] = tuple(DTYPES), parts: Sequence[str] = ("",)
) -> list[Recorded]:
    """Records the launches of all cases whose name contains one of ``parts``, each as it is compiled."""
    chosen = {name: run for name, run in OPERATIONS.items() if any(part in name for part in parts)}
    recorded: list[Recorded] = []
    for name, dtype, (operation, run) in itertools.product(targets, dtypes, chosen.items()):
        if dtype != "bf16" and operation in BF16_ALONE:
            continue
        target = TARGETS[name]
        with record(target) as launches:
            run(DTYPES[dtype])
        recorded += [Recorded(operation, dtype, specialize(launch, target)) for launch in launches]
    return recorded
