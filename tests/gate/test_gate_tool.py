"""The tool that reads compiled code: that it specialises as Triton does, and that code breaks its laws."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.compiled import table
from benchmarks.compiled.compile import compile_code, report
from benchmarks.compiled.laws import broken_laws
from benchmarks.compiled.specialize import specialize
from benchmarks.compiled.survey import Recorded, broken_by, survey
from moekit_kernels.runtime import Launch
from moekit_kernels.targets import GFX942, SM_80, SM_90, SM_100, Target


@triton.jit
def product_kernel(a, b, c, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``c = a @ b`` of one tile."""
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        acc = tl.dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * BLOCK_N + n), acc)
    tl.store(c + m * BLOCK_N + n, acc)


@triton.jit
def gather_kernel(
    a, rows, b, c, tiles, K, stride_a, FLATTEN: tl.constexpr, ASSUME: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``c[i] = a[rows] @ b[i]`` of many tiles; rows through pointers, ``b`` through a descriptor."""
    weights = tl.make_tensor_descriptor(b, [tiles * BLOCK, K], [K, 1], [BLOCK, BLOCK_K])
    m = tl.arange(0, BLOCK)
    steps = tl.cdiv(K, BLOCK_K)
    if ASSUME:
        tl.assume(steps > 0)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row = tl.load(rows + index * BLOCK + m).to(tl.int64) * stride_a
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for step in range(0, steps):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            x = tl.load(a + row[:, None] + k[None, :])
            acc = tl.dot(x, weights.load([index * BLOCK, step * BLOCK_K]).T, acc)
        tl.store(c + index * BLOCK * BLOCK + m[:, None] * BLOCK + m[None, :], acc)


@triton.jit
def arguments_kernel(x, missing, one, small, wide, even, share, flag, SIZE: tl.constexpr):
    """Takes one argument of each kind."""
    place = tl.arange(0, SIZE)
    value = tl.load(x + place) * share + one + small + wide + even
    tl.store(x + place, tl.where(flag, value, 0.0))


@triton.jit
def wrong_kernel(x, SIZE: tl.constexpr):
    """Does not compile."""
    tl.static_assert(SIZE == 0, "a size of nothing")


def product(
    m: int, n: int, k: int, num_warps: int = 4, num_stages: int = 3, dtype: torch.dtype = torch.bfloat16
) -> Launch:
    """Returns the launch of a product of tiles ``(m, k)`` and ``(k, n)``."""
    tile = torch.empty(256, 256, dtype=dtype, device="meta")
    arguments = {"a": tile, "b": tile, "c": tile, "K": 1024, "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return Launch(product_kernel, (1,), arguments, num_warps, num_stages)


def gather(flatten: bool, assume: bool = True) -> Launch:
    """Returns the launch of :func:`gather_kernel`."""
    tile = torch.empty(256, 256, dtype=torch.bfloat16, device="meta")
    sizes = {"tiles": 16, "K": 1024, "stride_a": 1024, "BLOCK": 128, "BLOCK_K": 64}
    values = {"a": tile, "rows": tile.long(), "b": tile, "c": tile, "FLATTEN": flatten, "ASSUME": assume, **sizes}
    return Launch(gather_kernel, (1,), values, 8, 3)


def arguments(**changed: Any) -> Launch:
    """Returns the launch of :func:`arguments_kernel`."""
    values: dict[str, Any] = {"x": torch.empty(64, device="meta"), "missing": None, "one": 1, "small": 7, "wide": 2**40}
    values |= {"even": 48, "share": 0.5, "flag": True, "SIZE": 16} | changed
    return Launch(arguments_kernel, (1,), values, 4, 2)


def laws(launch: Launch, target: Target) -> list[str]:
    """Returns the laws that the code of a launch breaks."""
    return list(broken_laws(report(launch, target), target))


def test_arguments_are_specialized_as_the_jit_does() -> None:
    specialization = specialize(arguments(), SM_90)
    assert specialization.signature == {
        "x": "*fp32",
        "missing": "constexpr",
        "one": "constexpr",
        "small": "i32",
        "wide": "i64",
        "even": "i32",
        "share": "fp32",
        "flag": "u1",
        "SIZE": "constexpr",
    }
    assert specialization.constants == {(1,): None, (2,): 1, (8,): 16}
    divisible = [["tt.divisibility", 16]]
    assert specialization.attributes == {(0,): divisible, (4,): divisible, (5,): divisible}
    assert specialization.declared_constants() == {"SIZE": 16}


def test_launches_of_equal_code_are_compiled_once() -> None:
    launches = [arguments(), arguments(small=9, x=torch.empty(32, device="meta")), arguments(even=47)]
    entries = survey([Recorded(f"case {i}", "bf16", specialize(one, SM_80)) for i, one in enumerate(launches)], 1)
    assert [entry["cases"] for entry in entries] == [["case 0", "case 1"], ["case 2"]]
    assert not any(broken_by(entry) for entry in entries)


def test_views_that_are_not_aligned_get_no_aligned_pointers() -> None:
    x: Tensor = torch.empty(65, device="meta")[1:]
    assert (0,) not in specialize(arguments(x=x), SM_90).attributes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("target", "instruction"), [(SM_80, "HMMA"), (SM_90, "HGMMA"), (SM_100, "UTCMMA"), (GFX942, "MFMA")], ids=str
)
def test_matrix_instructions_are_read(target: Target, instruction: str, dtype: torch.dtype) -> None:
    code = report(product(128, 128, 32, num_warps=8, num_stages=2, dtype=dtype), target)
    assert code.instructions[instruction] > 0
    assert code.dots == [(128, 128, 32)]
    assert 0 < code.registers <= 255
    assert 2 * 128 * 32 <= code.shared <= target.shared_memory
    assert list(broken_laws(code, target)) == []


def test_tiles_for_decoding_may_use_the_smaller_instruction() -> None:
    assert laws(product(16, 64, 64), SM_90) == []


@pytest.mark.parametrize(("target", "side"), [(SM_80, 128), (GFX942, 256)], ids=["sm_80", "gfx942"])
def test_spilling_is_read_from_the_code(target: Target, side: int) -> None:
    # One warp holds the whole sum, twice as many registers as a thread can have at most. A larger tile spills as well,
    # but LLVM of Triton 3.6 takes many minutes over 256 x 256 on sm_80.
    code = report(product(side, side, 16, num_warps=1, num_stages=1), target)
    assert code.spills > 0
    assert code.stack > 0
    assert any(law.startswith("spills: ") for law in broken_laws(code, target))


def test_too_much_shared_memory_breaks_a_law() -> None:
    assert laws(product(128, 128, 128, num_warps=8, num_stages=4), SM_80) == [
        "needs 196608 bytes of shared memory, sm_80 has 166912."
    ]


def test_tensor_memory_is_read_from_the_code() -> None:
    assert report(product(128, 128, 32, num_warps=4), SM_100).tensor_memory == 128


def test_a_product_without_its_instruction_breaks_a_law() -> None:
    # A group of four warps is the least that HGMMA takes.
    assert laws(product(64, 64, 32, num_warps=2), SM_90) == ["multiplies tiles [(64, 64, 32)] without HGMMA."]


def test_a_gather_must_be_asynchronous() -> None:
    specialization = specialize(gather(flatten=False), SM_90)
    assert specialization.copies_asynchronously
    code = compile_code(specialization)
    assert code.operands == {"descriptors": 1, "pointers": 1}
    assert code.instructions["UTMALDG"] > 0
    assert code.instructions["LDGSTS"] > 0
    assert code.flattened == 0
    assert list(broken_laws(code, SM_90, asynchronous=True)) == []


def test_a_gather_in_a_fused_loop_breaks_a_law_where_triton_loads_nothing_ahead() -> None:
    """Triton 3.6 does not; 3.8 and 3.9 do."""
    code = report(gather(flatten=True), SM_90)
    assert code.flattened == 1
    lost = [] if code.instructions["LDGSTS"] else ["nothing is loaded ahead."]
    laws = list(broken_laws(code, SM_90, asynchronous=True))
    assert [law.partition("LDGSTS: ")[2] for law in laws] == lost
    if triton.__version__.startswith("3.6."):
        assert lost


def test_a_fused_loop_must_state_that_it_is_not_empty() -> None:
    code = report(gather(flatten=True, assume=False), SM_90)
    assert "nothing states that the trip count of a loop that is fused is at least 1." in code.loop_faults


def test_rows_that_are_not_aligned_or_not_pipelined_need_no_asynchronous_copy() -> None:
    launch = gather(flatten=False)
    odd = launch._replace(arguments={**launch.arguments, "stride_a": 1001})
    assert not specialize(odd, SM_90).copies_asynchronously
    assert not specialize(launch._replace(num_stages=1), SM_90).copies_asynchronously
    assert not specialize(launch, GFX942).copies_asynchronously


def test_what_does_not_compile_is_in_the_table() -> None:
    launch = Launch(wrong_kernel, (1,), {"x": torch.empty(1, device="meta"), "SIZE": 16}, 4, 2)
    (entry,) = survey([Recorded("wrong", "bf16", specialize(launch, SM_80))], 1)
    (law,) = broken_by(entry)
    assert law.startswith("does not compile: ")
    assert "a size of nothing" in law
    assert "| wrong_kernel | sm_80 | 1 | 0 | 0 | 0 | – | 1 broken |" in table.markdown([entry])
    assert "BROKEN: does not compile" in table.detail([entry])


def test_a_kernel_of_the_interpreter_cannot_be_compiled() -> None:
    launch = arguments()._replace(kernel=product_kernel.fn)
    with pytest.raises(
        ValueError, match="must be a compiled kernel, a JITFunction, got function: unset TRITON_INTERPRET"
    ):
        specialize(launch, SM_80)
