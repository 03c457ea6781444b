"""A page that is served for the tests of it, by the command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest


class Served(NamedTuple):
    """A running server.

    Attributes:
        url: Its address.
        temporary: Where it may write; its folder of uploads is below.
        process: The server.
    """

    url: str
    temporary: Path
    process: subprocess.Popen[str]


def serve(run: Path, temporary: Path, *options: str) -> Served:
    """Starts the server of a run and waits until it answers."""
    command = [sys.executable, "-m", "recipes.medvlmoe", "serve", str(run), *options]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("open "):
            return Served(line.split()[1], temporary, process)
    raise AssertionError("".join(lines))


@pytest.fixture(scope="session")
def server(trained_run, tmp_path_factory):
    """The page of the small run, with uploads of at most 1 MiB; its temporary folder is empty afterwards."""
    pytest.importorskip("gradio", reason="needs the extra serve", exc_type=ImportError)
    temporary = tmp_path_factory.mktemp("served")
    served = serve(trained_run, temporary, "--max-upload", "1")
    yield served
    served.process.terminate()
    served.process.communicate(timeout=60)
    assert not [path for path in temporary.rglob("*") if path.is_file()]
