"""Launches on the CPU through a driver that starts nothing, with all that a GPU would get."""

import contextlib
from collections.abc import Generator
from typing import Any

from benchmarks.host.stub import StubDriver, StubLauncher, stubbed
from moekit_kernels import prepared


class Recorded(StubLauncher):
    """Keeps what it is called with: grid, stream, function, settings, metadata and hooks, then arguments."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012 (cleared for each test)

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        super().__call__(*arguments)


@contextlib.contextmanager
def recorded_launches() -> Generator[StubDriver]:
    """Records launches in :attr:`Recorded.calls`, from none; prepared launches are on, and none is kept before."""
    Recorded.calls.clear()
    with stubbed() as stub:
        stub.launcher_cls = Recorded
        prepared.use_prepared_launches(True)
        try:
            yield stub
        finally:
            prepared.use_prepared_launches(True)
            Recorded.calls.clear()
