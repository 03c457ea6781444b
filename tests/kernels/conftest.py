"""Every test starts from the same random numbers."""

import pytest
import torch

from tests.kernels.moe_ffn_runs import LOOPS, take


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=LOOPS)
def _each_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test once for each way of the expert FFN on CPU."""
    take(monkeypatch, request.param)
