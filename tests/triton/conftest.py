"""Kernels run where they can: compiled on a GPU, or interpreted on CPU in a process of their own."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from moekit_kernels.availability import triton_is_installed

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if triton_is_installed():
    from moekit_kernels.prepared import use_prepared_launches
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests where no kernel can run."""
    if INTERPRETED or torch.cuda.is_available():
        return
    reason = "Triton kernels need a GPU, or TRITON_INTERPRET=1 in a process of their own"
    for item in items:
        if "tests/triton/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_repeats_of_other_tests() -> None:
    """A test may replace what chooses kernels; calls of another test are no pattern for its own."""
    use_prepared_launches(True)


@pytest.fixture(autouse=True)
def _no_warning_of_infinities() -> Iterator[None]:
    """NumPy, in which the interpreter computes, warns of ``inf - inf``; a GPU gives NaN, as the kernels expect."""
    with np.errstate(invalid="ignore"):
        yield
