"""The gate on compiled code: under a version of Triton whose code was not read, what fails is reported and skipped."""

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

from moekit_kernels.availability import interpreting, triton_is_installed

if not triton_is_installed() or interpreting():
    collect_ignore_glob = ["test_*.py"]

FOLDER = Path(__file__).parent
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, which `make test` leaves out."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.gate)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skips a test that fails under an unread version, with what failed as the reason."""
    report = yield
    return _as_report(report, item.path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Does the same to a file that cannot be imported: the tool uses parts of Triton that may move."""
    report = yield
    return _as_report(report, collector.path)


def _as_report(report: Report, path: Path) -> Report:
    if not report.failed:
        return report
    from benchmarks.compiled import table

    if sentence := table.not_read():
        report.outcome = "skipped"
        report.longrepr = (str(path), 0, f"{sentence}\n{report.longreprtext}")
    return report
