"""Counters of arrivals are kept for each stream, except where a kernel may not leave them at zero, or is replayed."""

import pytest
import torch

from moekit_kernels import arrivals, runtime
from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.targets import INTERPRETER, SM_90

DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_counters(monkeypatch):
    monkeypatch.setattr(arrivals, "_counters", {})


def test_counters_are_kept_and_grow(monkeypatch):
    monkeypatch.setattr(runtime, "target_of", lambda device: SM_90)
    counters = arrival_counters(DEVICE, 3)
    assert counters.dtype == torch.int32
    assert not counters.any()
    assert arrival_counters(DEVICE, 200) is counters
    more = arrival_counters(DEVICE, 1000)
    assert more.shape == (1000,)
    assert arrival_counters(DEVICE, 3) is more


def test_the_interpreter_and_recordings_get_their_own(monkeypatch):
    with runtime.record(SM_90):
        assert arrival_counters(DEVICE, 3) is not arrival_counters(DEVICE, 3)
    monkeypatch.setattr(runtime, "target_of", lambda device: INTERPRETER)
    assert arrival_counters(DEVICE, 3) is not arrival_counters(DEVICE, 3)
    assert not arrivals._counters
    assert arrival_counters(DEVICE, 3).shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_get_their_own():
    device = torch.device("cuda", 0)
    kept = arrival_counters(device, 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = arrival_counters(device, 3)
    assert captured.data_ptr() != kept.data_ptr()
