"""Strategies, processes that torchrun started, blocks, shards, throughput."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from recipes.shared.blocks import blocks_of
from recipes.shared.launched import with_launched_processes
from recipes.shared.settings import TrainSettings
from recipes.shared.shards import shard_optimizer_state, whole_state
from recipes.shared.strategy import launch
from recipes.shared.throughput import Throughput, run_throughput


@dataclass(frozen=True)
class Config:
    train: TrainSettings = field(default_factory=TrainSettings)


def test_sharded_gradients_are_not_scaled():
    with pytest.raises(ValueError, match=r"'fsdp2' \(--strategy\) needs --precision bf16-mixed or 32-true"):
        launch(TrainSettings(precision="16-mixed"), "fsdp2")


def test_one_device_has_no_strategy():
    fabric = launch(TrainSettings(accelerator="cpu", precision="bf16-mixed"), "fsdp2")
    assert type(fabric.strategy).__name__ == "SingleDeviceStrategy"


def started(monkeypatch, **variables):
    for name, value in {"TORCHELASTIC_RUN_ID": "run", **variables}.items():
        monkeypatch.setenv(name, value)


def test_torchrun_decides_devices_and_nodes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert with_launched_processes(Config()) == Config()
    started(monkeypatch, LOCAL_WORLD_SIZE="4", WORLD_SIZE="8")
    train = with_launched_processes(Config()).train
    assert (train.devices, train.nodes) == (4, 2)
    assert with_launched_processes(Config(replace(train))).train == train
    with pytest.raises(ValueError, match=r"devices \(--devices\) must be left out or 4, as torchrun .* got 2"):
        with_launched_processes(Config(TrainSettings(devices=2)))
    with pytest.raises(ValueError, match=r"nodes \(--nodes\) must be left out or 2, as torchrun .* got 3"):
        with_launched_processes(Config(TrainSettings(nodes=3)))


def test_blocks_are_what_lists_hold():
    block = nn.Sequential  # of a type of its own below

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    model = nn.Module()
    model.stem = block(nn.Linear(2, 2), nn.ReLU())  # nothing with parts
    model.stages = nn.ModuleList([block(Block(), Block()), block(Block())])
    model.head = Block()  # in no list
    assert blocks_of(model) == [model.stages[0][0], model.stages[0][1], model.stages[1][0]]


def test_states_without_shards_stay_as_they_are():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for one in (whole_state(state), shard_optimizer_state(state, optimizer)):
        assert one["state"][0]["exp_avg"] is state["state"][0]["exp_avg"]
        assert one["param_groups"] == state["param_groups"]


class Bar:
    def set_postfix(self, figures, refresh):
        self.figures = figures


def test_throughput_counts_samples_waits_and_memory(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 8.0, 8.0])
    monkeypatch.setattr("recipes.shared.throughput.time.monotonic", lambda: next(clock))
    bar = Bar()
    throughput = Throughput(bar)  # at 0
    with throughput.waiting():  # from 1 to 3
        pass
    throughput.count(16)  # at 4; shown, and figures at 8
    assert bar.figures["samples/s"] == "2"
    assert bar.figures["data wait"] == "25%"
    assert bar.figures["memory"].endswith(" GiB")
    figures = throughput.figures()
    assert (figures["samples_per_second"], figures["data_wait"]) == (2.0, 0.25)
    assert figures["peak_memory_bytes"] > 0


def test_throughput_of_a_run_weighs_epochs_by_their_time():
    epochs = [
        {"seconds": 5.0},  # of an older version
        {"seconds": 1.0, "samples_per_second": 10.0, "data_wait": 0.5},
        {"seconds": 3.0, "samples_per_second": 30.0, "data_wait": 0.1},
    ]
    assert run_throughput(epochs) == {"samples_per_second": 25.0, "data_wait": pytest.approx(0.2)}
    assert run_throughput(epochs[:1]) == {"samples_per_second": None, "data_wait": None}
