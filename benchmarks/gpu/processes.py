"""Processes of the sections: all are started at once and import what they need, then run one after the other.

So no section waits for imports, one that hangs or crashes leaves the others alone, and an illegal address on the GPU
ends with the process that caused it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit status; None if it was cut off.
    """

    code: int | None


class Waiting:
    """A process that has been started and waits for the line with its seconds."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, str]) -> None:
        # A session of its own, so that what it starts ends with it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | dict(settings)
        )

    def run(self, seconds: float) -> Outcome:
        """Lets it run for at most ``seconds``, then ends it and all that it started."""
        try:
            self._process.communicate(f"{seconds}\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            return Outcome(None)
        return Outcome(self._process.returncode)

    def end(self) -> None:
        """Ends it and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def wait_for_seconds() -> float | None:
    """Returns the seconds that the starting process allows, once it says so; None if it ended without a word."""
    line = sys.stdin.readline()
    return float(line) if line.strip() else None
