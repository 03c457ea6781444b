"""The table of tile sizes: complete, looked up by rows, overridden for a block of code."""

import itertools
import json
import threading
from contextlib import contextmanager

import pytest
import torch

from moekit_kernels.configs import (
    KINDS,
    GemmConfig,
    committed,
    gemm_config,
    is_aligned,
    load,
    operand_class,
    override,
    tile_heights,
)
from moekit_kernels.targets import INTERPRETER, SM_80, SM_90, TARGETS

OWN = {"sm_90": {"forward": {"16-bit": [[0, [64, 128, 64, 8, 4, 3, 1]], [100, [128, 64, 32, 4, 8, 2, 2]]]}}}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_target_kind_and_dtype_has_one_for_any_number_of_rows(target, kind, dtype):
    for rows, aligned in itertools.product((0, 1, 20, 100, 10**6), (True, False)):
        config = gemm_config(kind, target, dtype, rows, aligned)
        blocks = (config.block_m, config.block_n, config.block_k)
        assert all(block >= 16 and block & (block - 1) == 0 for block in blocks), "Triton multiplies powers of two"
        assert min(config[:-1]) >= 1
        assert config.per_processor >= (0 if kind == "weight_grad" else 1)


def test_the_table_has_no_other_names():
    assert set(committed()) == set(TARGETS)
    for kinds in committed().values():
        assert set(kinds) == set(KINDS)
        for entries in kinds.values():
            assert set(entries) - {"tf32"} == {"16-bit", "32-bit", "odd"}
            for least in ([least for least, _ in rows] for rows in entries.values()):
                assert least[0] == 0
                assert least == sorted(set(least))


@pytest.mark.parametrize("name", TARGETS)
def test_one_schedule_of_tiles_serves_forward_and_backward(name):
    """The kinds whose kernels read schedules have one tile height at any number of rows; a plan holds at most four."""
    kinds = [committed()[name][kind] for kind in ("forward", "glu", "activation")]
    for operands in kinds[0]:
        for rows in {least for kind in kinds for least, _ in kind[operands]}:
            heights = {[config[0] for least, config in kind[operands] if least <= rows][-1] for kind in kinds}
            assert len(heights) == 1, (operands, rows)
            assert heights <= set(tile_heights(TARGETS[name]))
    assert len(tile_heights(TARGETS[name])) <= 4


def test_rows_per_expert_choose():
    with override(OWN):
        assert gemm_config("forward", SM_90, torch.float16, 99) == GemmConfig(64, 128, 64, 8, 4, 3, 1)
        assert gemm_config("forward", SM_90, torch.float16, 100) == GemmConfig(128, 64, 32, 4, 8, 2, 2)


def test_an_override_holds_in_other_threads_and_ends():
    """Backward runs in threads of autograd."""
    seen = []
    with override(OWN):
        thread = threading.Thread(target=lambda: seen.append(gemm_config("forward", SM_90, torch.float16, 100)))
        thread.start()
        thread.join()
    seen.append(gemm_config("forward", SM_90, torch.float16, 100))
    ours, (*_, (_, numbers)) = GemmConfig(128, 64, 32, 4, 8, 2, 2), committed()["sm_90"]["forward"]["16-bit"]
    assert seen == [ours, GemmConfig(*numbers)]


@contextmanager
def _precision(name):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = name
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_float32_in_tf32_has_tiles_of_its_own_where_the_table_has_any():
    exact = {"sm_90": {"forward": {"32-bit": [[0, [16] * 7]]}}}
    tf32 = {"sm_90": {"forward": {"32-bit": [[0, [16] * 7]], "tf32": [[0, [32] * 7]]}}}
    tiles = [GemmConfig(*[size] * 7) for size in (16, 32)]
    with _precision("tf32"):
        assert operand_class(torch.float32) == "tf32"
        assert operand_class(torch.bfloat16) == "16-bit"
        assert operand_class(torch.float32, aligned=False) == "odd"
        for table, tile in ((exact, tiles[0]), (tf32, tiles[1])):
            with override(table):
                assert gemm_config("forward", SM_90, torch.float32, 1) == tile
    with _precision("ieee"), override(tf32):
        assert operand_class(torch.float32) == "32-bit"
        assert gemm_config("forward", SM_90, torch.float32, 1) == tiles[0]


def test_what_an_override_lacks_comes_from_the_committed_table():
    def others():
        return [
            gemm_config(kind, target, torch.float32, 50) for kind in KINDS for target in (SM_80, SM_90, INTERPRETER)
        ]

    before = others()
    with override(OWN):
        after = others()
        assert gemm_config("forward", SM_90, torch.bfloat16, 0).block_m == 64
    assert after == before
    ((_, numbers), *_) = committed()["sm_90"]["forward"]["16-bit"]
    assert gemm_config("forward", SM_90, torch.bfloat16, 0) == GemmConfig(*numbers)


@pytest.mark.parametrize(
    ("dtype", "widths", "aligned"),
    [(torch.bfloat16, (8, 1024), True), (torch.bfloat16, (1024, 12), False), (torch.float32, (12,), True)],
)
def test_rows_are_aligned_where_they_are_multiples_of_16_bytes(dtype, widths, aligned):
    assert is_aligned(dtype, *widths) == aligned


def test_a_table_is_read_from_a_file(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    assert load(tmp_path / "own.json") == OWN


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"no configuration of kernel 'forward' for 16-bit operands on 'sm_70'"):
        gemm_config("forward", SM_90._replace(name="sm_70"), torch.float16, 1)
