"""The gate: every kernel compiles for every target, without spills, within memory, with its matrix instructions.

Nothing here needs a GPU. All code is compiled once, by one process pool, which the first of pytest's workers starts.
"""

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from benchmarks.compiled import exceptions, table
from benchmarks.compiled.cases import DESCRIPTOR_KERNELS, DTYPES, GEMM_KERNELS, TARGET_NAMES
from benchmarks.compiled.survey import broken_by
from moekit_kernels.configs import KINDS, GemmConfig, committed
from moekit_kernels.targets import TARGETS

ROOT = Path(__file__).parents[2]

# The worker that compiles holds up the others, and a machine may have one slow core.
pytestmark = pytest.mark.timeout(1800)


def kernels_in_the_tree() -> list[str]:
    """Returns the names of all ``@triton.jit`` functions that are started, by convention those called ``*_kernel``."""
    functions = [
        node
        for path in (ROOT / "kernels" / "moekit_kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    ]
    return sorted(f.name for f in functions if any("triton.jit" in ast.unparse(d) for d in f.decorator_list))


@pytest.fixture(scope="session")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Everything compiled, once for all workers, in processes of their own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in a common one
        folder = folder.parent
    path = folder / "compiled.json"
    with (folder / "compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            command = [sys.executable, "-m", "benchmarks", "compiled", "--out", str(path)]
            # The present path may hold another version of Triton, so it stays, and comes first.
            paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "kernels")]
            done = subprocess.run(
                command,
                check=False,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                capture_output=True,
                text=True,
            )
            if not path.is_file():
                pytest.fail(f"python -m benchmarks compiled stopped before it wrote anything:\n{done.stderr}")
    return table.read(path)["entries"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("kernel", kernels_in_the_tree())
def test_code_of_default_configurations_breaks_no_law(
    entries: list[dict[str, Any]], kernel: str, target: str, dtype: str
) -> None:
    own = [e for e in entries if e["kernel"] == kernel and e["target"] == target and dtype in e["dtypes"]]
    if kernel in DESCRIPTOR_KERNELS and not TARGETS[target].tma:
        assert not own, f"{kernel} needs a copy engine, which {target} has not"
        return
    assert own, f"no case in benchmarks/compiled/cases.py launches {kernel}"
    broken = [f"{table.title(entry)}: {law}" for entry in own for law in broken_by(entry)]
    assert not broken, "\n".join(broken)
    if kernel in GEMM_KERNELS:
        assert all(entry["dots"] for entry in own), f"{kernel} is a GEMM kernel, but multiplies no 16-bit tiles"


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_every_committed_tile_is_compiled(entries: list[dict[str, Any]], target: str) -> None:
    kernels = {
        "forward": ("grouped_gemm_fwd_kernel", False),
        "glu": ("grouped_gemm_fwd_kernel", True),
        "activation": ("moe_ffn_bwd_act_kernel", True),
        "weight_grad": ("grouped_gemm_bwd_dw_kernel", None),
        "few_rows": ("few_rows_fwd_kernel", True),
    }
    assert set(kernels) == set(KINDS)
    compiled = {
        (e["kernel"], c.get("PAIR"), c.get("BLOCK_M"), c.get("BLOCK_N"), c["BLOCK_K"], e["num_warps"], e["num_stages"])
        for e in entries
        if e["target"] == target and "BLOCK_K" in (c := e["constants"])
    }
    for kind, kernel in kernels.items():
        for _, numbers in committed()[target][kind]["16-bit"]:
            tile = GemmConfig(*numbers)
            blocks = (tile.block_m, tile.block_n, tile.block_k)
            assert (*kernel, *blocks, tile.num_warps, tile.num_stages) in compiled, f"no case takes {kind} {tile}"


def test_titles_are_unique(entries: list[dict[str, Any]]) -> None:
    assert len({table.title(entry) for entry in entries}) == len(entries)


def test_every_kernel_that_multiplies_tiles_is_marked(entries: list[dict[str, Any]]) -> None:
    assert {entry["kernel"] for entry in entries if entry.get("dots")} == GEMM_KERNELS


def test_the_cases_launch_no_kernel_from_elsewhere(entries: list[dict[str, Any]]) -> None:
    assert {entry["kernel"] for entry in entries} == set(kernels_in_the_tree())


def test_the_committed_table_is_what_is_compiled(entries: list[dict[str, Any]]) -> None:
    path = table.path_of()
    assert path.is_file(), f"there is no table {path.name}"
    changes = table.differences(table.read(path)["entries"], entries)
    assert not changes, "write it anew with python -m benchmarks compiled:\n" + "\n".join(changes)


def test_every_exception_is_needed(entries: list[dict[str, Any]]) -> None:
    for exception in exceptions.EXCEPTIONS:
        covered = [e for e in entries if exception.covers(e["kernel"], e["target"], triton.__version__, e["constants"])]
        spilling = [entry for entry in covered if entry["spills"] or entry["stack"]]
        assert spilling or exception.triton != triton.__version__, f"nothing spills that needs {exception}"
