"""How this project sets up pytest: warnings are errors, but for one that would stop it before any test runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARK_WARNING = "Benchmarks are automatically disabled because xdist plugin is active."


@pytest.mark.parametrize(
    ("warning", "status"), [(BENCHMARK_WARNING, pytest.ExitCode.OK), ("else", pytest.ExitCode.INTERNAL_ERROR)]
)
def test_pytest_benchmark_beside_xdist_does_not_stop_the_tests(tmp_path: Path, warning: str, status: int) -> None:
    """As pytest-benchmark before 5.3 warned, whether it is installed or not."""
    plugin = f"import warnings\n\ndef pytest_configure(config):\n    warnings.warn({warning!r})\n"
    (tmp_path / "warning_plugin.py").write_text(plugin)
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "warning_plugin", str(tmp_path / "test_nothing.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
