"""In the compiled code of the router, accumulators of tensor cores take one step alone: steps are added by float32."""

import re
from typing import Any

import pytest
import triton
from triton.compiler import ASTSource

from benchmarks.compiled.cases import TARGET_NAMES, record_all
from benchmarks.compiled.specialize import gpu_target

PRODUCT = r"%(\S+) = (?:tt\.dot|ttng\.warp_group_dot) [^,]+, [^,]+, %([^ ,]+)"
STEP = r"arith\.subf %(?:arg|minus)\S*, %total"


def _code(target: str, kernel: str) -> list[str]:
    """Returns the intermediate code of a kernel for a bfloat16 gate of 128 experts, of each launch."""
    codes = []
    for one in record_all([target], ["bf16"], ["router qwen3"]):
        special = one.specialization
        if special.name == kernel:
            source = ASTSource(
                special.kernel, dict(special.signature), dict(special.constants), dict(special.attributes)
            )
            compiled: Any = triton.compile(source, target=gpu_target(special.target), options=special.options)
            codes.append(compiled.asm["ttgir"])
    return codes


@pytest.mark.parametrize("kernel", ["route_linear_fwd_kernel", "route_linear_bwd_kernel"])
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_steps_are_added_by_float32_arithmetic(target: str, kernel: str):
    codes = _code(target, kernel)
    assert codes
    for code in codes:
        assert re.search(STEP, code), "the sum over steps is not a difference of tiles"
        products = re.findall(PRODUCT, code)
        assert products or "tc_gen5_mma" in code
        carried = [accumulator for _, accumulator in products if accumulator.startswith(("arg", "minus"))]
        assert not carried, f"a product goes on from the accumulator of the step before: {carried}"
