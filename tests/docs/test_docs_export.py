"""The page on saving and exporting runs, and what it compiles runs in a process that has no moekit."""

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.docs.pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "export.md"

_ALONE = """
import sys, torch
compiled = torch._inductor.aoti_load_package("runs/moe.pt2")
exported = torch.export.load("runs/moe.exported.pt2").module()
x = torch.arange(37.0 * 64).view(37, 64).sin()
torch.save([compiled(x), exported(x)], "runs/outputs.pt")
assert not {"moekit", "moekit_kernels"} & set(sys.modules)
"""


def _run(text: str, line: int, namespace: dict[str, Any]) -> None:
    # Blank lines in front make a traceback show the page's own line numbers.
    exec(compile("\n" * line + text, str(PAGE), "exec"), namespace)


@pytest.mark.slow
# torch's exporter and what it calls, under some versions
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_page_runs_and_its_programs_run_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    blocks = [block for block in blocks_of(PAGE) if block.language == "python"]
    compiling = [block for block in blocks if "aoti_compile_and_package" in block.text]
    assert len(compiling) == 1
    for block in blocks:
        if block is not compiling[0]:
            _run(block.text, block.line, namespace)
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("AOTInductor needs a C++ compiler, and there is none; the page's other blocks ran")
    _run(compiling[0].text, compiling[0].line, namespace)
    subprocess.run([sys.executable, "-c", _ALONE], check=True, timeout=300)
    x = torch.arange(37.0 * 64).view(37, 64).sin()
    expected = namespace["module"](x)
    for output in torch.load("runs/outputs.pt"):
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
        assert output.abs().max() > 0.01
