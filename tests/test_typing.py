"""The examples of README and quickstart pass strict type checkers in another project, and misuse does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [str(ROOT), str(ROOT / "kernels")]

# What is silenced is of torch and transformers: functions without types, or types that are partially unknown.
MYPY = """
[mypy]
strict = True
untyped_calls_exclude = torch,transformers
# as for an installed package
follow_imports = silent
"""
PYRIGHT = f"""
[tool.pyright]
typeCheckingMode = "strict"
reportUnknownMemberType = false
extraPaths = {SOURCES!r}
"""
MISUSE = """
import torch
from moekit import SparseMoE, TopKRouter, load_balancing_loss

moe = SparseMoE.ffn("wide", 128, 8, 2)
moe.router.update_bias_("counts")
TopKRouter(64, 8, 2, scoring="tanh")
load_balancing_loss(torch.ones(3))
moe.forward(torch.ones(3, 64)).statistics
"""


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    for page, least in (("README.md", 1), ("docs/quickstart.md", 6)):
        examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
        assert len(examples) >= least
        (tmp_path / page.lower().replace("docs/", "").replace(".md", ".py")).write_text("\n".join(examples))
    (tmp_path / "misuse.py").write_text(MISUSE)
    (tmp_path / "mypy.ini").write_text(MYPY)
    (tmp_path / "pyproject.toml").write_text(PYRIGHT)
    return tmp_path


def _check(consumer: Path, *command: str) -> tuple[list[str], list[int]]:
    """Returns the errors in the examples, and the lines of the misuse that have one."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "readme.py", "quickstart.py", "misuse.py"],
        cwd=consumer,
        env={**os.environ, "MYPYPATH": os.pathsep.join(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line.strip() for line in done.stdout.splitlines() if "error:" in line]
    assert errors, done.stdout + done.stderr
    lines = [re.search(r"misuse\.py:(\d+)", line) for line in errors]
    return [line for line in errors if "misuse.py" not in line], sorted({int(each[1]) for each in lines if each})


# The lines of the misuse, each an error.
MISUSED = [5, 6, 7, 8, 9]


@pytest.mark.slow
def test_mypy_passes_the_examples_and_finds_misuse(consumer: Path) -> None:
    pytest.importorskip("mypy")
    errors, misused = _check(consumer, "mypy")
    assert errors == []
    assert misused == MISUSED


@pytest.mark.slow
def test_pyright_passes_the_examples_and_finds_misuse(consumer: Path) -> None:
    pytest.importorskip("pyright")
    errors, misused = _check(consumer, "pyright", "--pythonpath", sys.executable)
    assert errors == []
    assert misused == MISUSED
