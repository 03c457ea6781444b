"""Which files hold Triton's language, by their names: linters and type checkers go by these."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "kernels" / "moekit_kernels"
ALLOWED = ("triton", "moekit_kernels.availability")


def _is_jit(decorator):
    return ast.unparse(decorator).startswith("triton.jit")


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def problems(root):
    """One sentence for each kernel in a file of another name, and for each import that a kernel file may not have."""
    for path in sorted(root.rglob("*.py")):
        tree, place = ast.parse(path.read_text()), path.relative_to(root)
        kernels = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and any(map(_is_jit, n.decorator_list))]
        if not path.stem.startswith("kernel"):
            yield from (f"{place}: {kernel.name} must be in a file named kernel*.py" for kernel in kernels)
            continue
        for name in _imports(tree):
            is_kernel = name.rpartition(".")[2].startswith("kernel")
            if not is_kernel and not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED):
                yield f"{place}: a kernel file may not import {name}"


def test_kernels_are_in_files_named_kernel_and_import_nothing_but_kernels():
    assert list(problems(ROOT)) == []
    assert len(list(ROOT.rglob("kernel*.py"))) > 5


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("op.py", "@triton.jit\ndef run(): ...", "op.py: run must be in a file named kernel"),
        ("launches.py", "@triton.jit(do_not_specialize=['n'])\ndef run(): ...", "launches.py: run must be in"),
        (
            "kernel.py",
            "from moekit_kernels.plan.reference import plan",
            "kernel.py: a kernel file may not import moekit",
        ),
        ("kernel_a.py", "import torch", "kernel_a.py: a kernel file may not import torch"),
    ],
)
def test_a_violation_is_named(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    (sentence,) = problems(tmp_path)
    assert sentence.startswith(problem)
