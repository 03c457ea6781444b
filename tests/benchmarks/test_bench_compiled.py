"""Reading compiled code and judging it, on text and figures alone: no compiler takes part."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.compiled.code import Code, read_amd, read_nvidia
from benchmarks.compiled.exceptions import EXCEPTIONS, SpillException, exception_for
from benchmarks.compiled.laws import broken_laws
from benchmarks.compiled.representation import flattened_loops, operand_loads
from moekit_kernels.availability import triton_is_installed
from moekit_kernels.targets import GFX942, SM_80, SM_90, SM_100

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {"HMMA": 64, "HGMMA": 32, "UTCMMA": 16, "MFMA": 128, "UTMALDG": 6, "LDGSTS": 8}
GOOD = Code(128, 0, 0, 98304, 0, INSTRUCTIONS, [(128, 128, 64)], {"descriptors": 1, "pointers": 1}, 0, [])
ALLOWED = SpillException("gemm_kernel", "sm_90", "3.6.0", {"BLOCK_M": 128}, 42, 64, "docs/kernels.md")
NVIDIA_ASSEMBLY = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @!P0 LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
        /*0020*/              @!UP1 HGMMA.64x256x16.F32 R24, gdesc[UR4], R24 ;
        /*0030*/                   STL [R1+0x4], R5 ;
        /*0040*/                   LDL R5, [R1+0x4] ;
        /*0050*/                   STL.64 [R1+0x8], R6 ;
"""
AMD_ASSEMBLY = """
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\tscratch_store_dword off, v1, s32 offset:4
    .group_segment_fixed_size: 1024
    .private_segment_fixed_size: 20
    .vgpr_count:     256
    .vgpr_spill_count: {spilled}
"""
DOT = "%8 = tt.dot %5, %6, %7 : tensor<64x32xbf16> * tensor<32x256xbf16> -> tensor<64x256xf32>"
FLATTENED = """
    %c0_i32 = arith.constant 0 : i32 loc(#loc1)
    %count = arith.divsi %k, %c64_i32 : i32 loc(#loc2)
    %positive = arith.cmpi sgt, %count, %c0_i32 : i32 loc(#loc3)
    llvm.intr.assume %positive : i1 loc(#loc3)
    scf.for %index = %0 to %1 step %2  : i32 {
      %rows = tt.load %pointers, %mask, %zeros : tensor<64x32x!tt.ptr<bf16>> loc(#loc4)
      %acc = scf.for %step = %c0_i32 to %count step %c1_i32 iter_args(%4 = %cst) -> (tensor<64x256xf32>)  : i32 {
        %5 = arith.select %inside, %rows, %zeros : tensor<64x32xi1>, tensor<64x32xbf16> loc(#loc4)
        %b = tt.descriptor_load %w[%column, %step] : !tt.tensordesc<256x32xbf16> -> tensor<256x32xbf16> loc(#loc5)
        %6 = tt.trans %b {order = array<i32: 1, 0>} : tensor<256x32xbf16> -> tensor<32x256xbf16> loc(#loc6)
        %8 = tt.dot %5, %6, %4 : tensor<64x32xbf16> * tensor<32x256xbf16> -> tensor<64x256xf32> loc(#loc7)
        scf.yield %8 : tensor<64x256xf32> loc(#loc7)
      } loc(#loc8)
    } {tt.flatten} loc(#loc9)
"""
FUSED = """
    %3:2 = scf.for %5 = %c0_i32 to %2 step %c1_i32 iter_args(%6 = %7, %8 = %9) -> (i32, i32)  : i32 {
      scf.if %10 {
      } loc(#loc8)
    } loc(#loc9)
"""


def test_code_of_nvidia_is_read() -> None:
    usage = "Function k:\n REG:168 STACK:24 SHARED:0 LOCAL:0\n"
    code = read_nvidia(usage, NVIDIA_ASSEMBLY, DOT, "", 4096, 128)
    assert code[:5] == (168, 3, 24, 4096, 128)
    assert code.instructions == {"HMMA": 0, "HGMMA": 1, "UTCMMA": 0, "UTMALDG": 0, "LDGSTS": 1}
    assert code.dots == [(64, 256, 32)]


@pytest.mark.parametrize(("spilled", "spills"), [(0, 1), (7, 7)])
def test_code_of_amd_is_read(spilled: int, spills: int) -> None:
    code = read_amd(AMD_ASSEMBLY.format(spilled=spilled), DOT, "", 512)
    assert code[:5] == (256, spills, 20, 1024, 0)
    assert code.instructions == {"MFMA": 1}


def test_text_in_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"compiled code must contain .*REG.*, got none: this version of Triton"):
        read_nvidia("", NVIDIA_ASSEMBLY, DOT, "", 0, 0)


@pytest.mark.parametrize("target", [SM_80, SM_90, SM_100, GFX942], ids=lambda target: target.name)
def test_good_code_breaks_no_law(target: Any) -> None:
    assert list(broken_laws(GOOD._replace(shared=target.shared_memory), target)) == []


def test_every_law_can_be_broken() -> None:
    assert list(broken_laws(GOOD._replace(spills=3, stack=8), SM_90)) == [
        "spills: 3 instructions or registers, 8 bytes of stack."
    ]
    assert list(broken_laws(GOOD._replace(stack=8), SM_90)) == [
        "spills: 0 instructions or registers, 8 bytes of stack."
    ]
    assert list(broken_laws(GOOD._replace(shared=196608), SM_80)) == [
        "needs 196608 bytes of shared memory, sm_80 has 166912."
    ]
    assert list(broken_laws(GOOD._replace(tensor_memory=1024), SM_100)) == [
        "needs 1024 columns of tensor memory, sm_100 has 512."
    ]
    without = GOOD._replace(instructions=GOOD.instructions | {"HGMMA": 0})
    assert list(broken_laws(without, SM_90)) == ["multiplies tiles [(128, 128, 64)] without HGMMA."]


def test_descriptors_without_the_copy_engine_break_a_law() -> None:
    fewer = GOOD._replace(instructions=INSTRUCTIONS | {"UTMALDG": 1}, operands={"descriptors": 2, "pointers": 0})
    assert list(broken_laws(fewer, SM_90)) == ["brings 2 operands through descriptors, but has 1 UTMALDG."]
    assert list(broken_laws(fewer, SM_80)) == [], "where there is no copy engine, descriptors become pointers"


def test_a_gather_that_is_not_asynchronous_breaks_a_law() -> None:
    waiting = GOOD._replace(instructions=INSTRUCTIONS | {"LDGSTS": 0})
    for target in (SM_80, SM_90, SM_100):
        assert list(broken_laws(waiting, target, asynchronous=True)) == [
            "brings 1 operands through pointers without LDGSTS: nothing is loaded ahead."
        ]
        assert list(broken_laws(GOOD, target, asynchronous=True)) == []
    assert list(broken_laws(waiting, SM_90)) == [], "rows that are not aligned, or no pipeline"


def test_faults_of_loops_break_a_law() -> None:
    assert list(broken_laws(GOOD._replace(loop_faults=["a fault."]), SM_90)) == ["a fault."]


def test_products_of_float32_are_read_where_they_are_in_tf32() -> None:
    exact = FLATTENED.replace("bf16", "f32")
    tf32 = exact.replace("%4 : tensor<64x32xf32>", "%4, inputPrecision = tf32 : tensor<64x32xf32>")
    usage = "REG:168 STACK:24"
    assert read_nvidia(usage, "", tf32, FUSED, 0, 0).dots == [(64, 256, 32)]
    assert operand_loads(tf32) == {"descriptors": 1, "pointers": 1}
    assert read_nvidia(usage, "", exact, FUSED, 0, 0).dots == []
    assert operand_loads(exact) == {"descriptors": 0, "pointers": 0}


def test_where_operands_come_from_is_read() -> None:
    assert operand_loads(FLATTENED) == {"descriptors": 1, "pointers": 1}
    assert operand_loads(DOT) == {"descriptors": 0, "pointers": 0}


def test_loops_that_are_to_be_fused_are_read() -> None:
    assert flattened_loops(FLATTENED, FUSED) == (1, [])
    assert flattened_loops(FLATTENED.replace(" {tt.flatten}", ""), FLATTENED) == (0, [])


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("llvm.intr.assume %positive", "llvm.intr.assume %other", "nothing states that the trip count .* at least 1"),
        ("cmpi sgt", "cmpi sge", "nothing states that the trip count .* at least 1"),
        (
            "      %rows =",
            "      %count = arith.select %alive, %k, %c0_i32 : i32\n      %rows =",
            "depends on the tile",
        ),
    ],
)
def test_a_fused_loop_that_may_be_empty_is_a_fault(before: str, after: str, sentence: str) -> None:
    assert before in FLATTENED
    _, (fault,) = flattened_loops(FLATTENED.replace(before, after), FUSED)
    assert re.search(sentence, fault)


def test_a_loop_that_was_not_fused_is_a_fault() -> None:
    assert flattened_loops(FLATTENED, FLATTENED) == (1, ["a loop that is to be fused with the one inside is not."])


def test_tiles_of_few_rows_use_the_smaller_instruction() -> None:
    few = GOOD._replace(dots=[(16, 64, 64)], instructions=GOOD.instructions | {"HGMMA": 0})
    assert list(broken_laws(few, SM_90)) == []
    assert list(broken_laws(few._replace(instructions=few.instructions | {"HMMA": 0}), SM_90)) == [
        "multiplies tiles [(16, 64, 64)] without HMMA."
    ]


def test_an_exception_allows_what_it_names_and_no_more() -> None:
    within = GOOD._replace(spills=42, stack=64)
    assert list(broken_laws(within, SM_90, ALLOWED)) == []
    for beyond in (within._replace(spills=43), within._replace(stack=72)):
        (law,) = broken_laws(beyond, SM_90, ALLOWED)
        assert law.endswith("(an exception allows 42 and 64).")
    (law,) = broken_laws(within._replace(shared=10**6), SM_90, ALLOWED)
    assert "shared memory" in law


@pytest.mark.parametrize(
    ("kernel", "target", "version", "constants", "covered"),
    [
        ("gemm_kernel", "sm_90", "3.6.0", {"BLOCK_M": 128, "BLOCK_N": 256}, True),
        ("other_kernel", "sm_90", "3.6.0", {"BLOCK_M": 128}, False),
        ("gemm_kernel", "sm_100", "3.6.0", {"BLOCK_M": 128}, False),
        ("gemm_kernel", "sm_90", "3.8.0", {"BLOCK_M": 128}, False),
        ("gemm_kernel", "sm_90", "3.6.0", {"BLOCK_M": 64}, False),
        ("gemm_kernel", "sm_90", "3.6.0", {}, False),
    ],
)
def test_an_exception_is_for_one_kernel_target_version_and_tile(
    kernel: str, target: str, version: str, constants: dict[str, int], covered: bool
) -> None:
    assert exception_for(kernel, target, version, constants, [ALLOWED]) == (ALLOWED if covered else None)


def test_every_exception_cites_a_record_of_this_repository() -> None:
    for exception in EXCEPTIONS:
        assert exception.citation.startswith(("benchmarks/results/", "docs/"))
        assert (ROOT / exception.citation).is_file()
        assert exception.kernel in (ROOT / exception.citation).read_text()


@pytest.mark.skipif(not triton_is_installed(), reason="the tables are read with Triton at hand")
class TestTable:
    """The committed tables."""

    def test_differences_name_what_is_new_gone_and_changed(self, tmp_path: Path) -> None:
        import triton

        from benchmarks.compiled import table

        entry = {"kernel": "k", "variant": 0, "target": "sm_80", "dtypes": ["bf16"], "cases": ["a"]}
        entry |= {"constants": {"B": 16}, "registers": 8}
        other = entry | {"target": "sm_90"}
        table.write([entry], tmp_path / "new" / "table.json")
        before = table.read(tmp_path / "new" / "table.json")
        assert before == {"triton": triton.__version__, "entries": [entry]}
        assert table.differences(before["entries"], [entry]) == []
        assert table.differences(before["entries"], [other]) == [
            "gone: k sm_80 bf16 [a] (B=16)",
            "new: k sm_90 bf16 [a] (B=16)",
        ]
        assert table.differences(before["entries"], [entry | {"registers": 9}]) == [
            "changed: k sm_80 bf16 [a] (B=16): registers 8 -> 9"
        ]

    def test_a_check_is_of_the_whole_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compiled", "--check", "--target", "sm_80"]) == 2
        assert "--check compares the whole table: leave out --kernel" in capsys.readouterr().err

    def test_a_table_is_marked_where_an_exception_was_needed(self) -> None:
        from benchmarks.compiled import table

        entry = GOOD._replace(spills=42)._asdict() | {"kernel": "k", "variant": 0, "target": "sm_90", "broken": []}
        entry |= {"dtypes": ["bf16"], "cases": ["a"], "constants": {}, "num_warps": 8, "num_stages": 3}
        assert table.markdown([entry]).endswith("| held |")
        entry["exception"] = "docs/kernels.md"
        assert table.markdown([entry]).endswith("| held, by exception |")
        assert "exception: docs/kernels.md" in table.detail([entry])
