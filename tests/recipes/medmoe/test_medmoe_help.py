"""The help of every stage comes at once: it waits for no heavy library."""

import subprocess
import sys

from recipes.medmoe.__main__ import _ABOUT

PROGRAM = """
import contextlib, io, sys
from recipes.medmoe.__main__ import main
for stage in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([stage, "--help"])
    assert "usage" in text.getvalue(), stage
    for heavy in ("torch", "timm", "transformers", "lightning", "matplotlib"):
        assert heavy not in sys.modules, f"{stage} --help imports {heavy}"
"""


def test_help_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *_ABOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
