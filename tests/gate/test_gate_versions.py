"""What the gate does under versions of Triton whose code was read, and under others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compiled import table

ROOT = Path(__file__).parents[2]
FAILING = {
    "test_law.py": "def test_law():\n    assert 1 == 2, 'spills: 3'\n",
    "test_tool.py": "import triton.not_there\n",
}


def run_gate(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on a failing test and a file that cannot be imported, as if Triton were of ``version``."""
    (folder / "conftest.py").write_text(
        "from benchmarks.compiled import table\n"
        f"not_read = table.not_read\ntable.not_read = lambda: not_read({version!r})\n"
        "from tests.gate.conftest import pytest_make_collect_report, pytest_runtest_makereport\n"
    )
    for name, text in FAILING.items():
        (folder / name).write_text(text)
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT), str(ROOT / "kernels")]))
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(folder), "--rootdir", str(folder)]
    return subprocess.run(
        [*command, "--continue-on-collection-errors"],
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def test_an_unread_version_is_reported_and_does_not_fail(tmp_path: Path) -> None:
    done = run_gate(tmp_path, "99.9.0")
    assert done.returncode == 0, done.stdout
    assert "2 skipped" in done.stdout
    assert "Triton 99.9.0 compiles to code that was not read" in done.stdout
    assert "spills: 3" in done.stdout
    assert "triton.not_there" in done.stdout


def test_a_version_that_was_read_fails(tmp_path: Path) -> None:
    done = run_gate(tmp_path, table.versions()[0])
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 error" in done.stdout


def test_the_oldest_supported_version_and_a_newer_one_were_read() -> None:
    assert "3.6.0" in table.versions()
    assert len(table.versions()) > 1


@pytest.mark.parametrize("version", table.versions())
def test_a_table_names_its_version(version: str) -> None:
    assert table.read(table.path_of(version))["triton"] == version
