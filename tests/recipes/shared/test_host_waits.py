"""Steps of training queue their work: nothing in them reads a value of a tensor, which would wait for a GPU."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from moekit_kernels.plan.checks import check_range
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medvlmoe import train
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.inference import dataset_of
from recipes.medvlmoe.objective import DiagnosisObjective
from recipes.medvlmoe.sources import build_source
from recipes.shared.steps import take_step
from tests.recipes.host_waits import HostWaits
from tests.recipes.medmoe.conftest import small_config as pairs_config
from tests.recipes.medvlmoe.conftest import small_config


@pytest.fixture
def waits(monkeypatch):
    """Counts in whole optimiser steps, but for what reads values that lie on the host.

    Those are the optimiser's counter of steps, and ids, whose range is checked on the CPU only.
    """
    mode, steps = HostWaits(), []

    def on_host(function):
        def call(*args, **kwargs):
            with mode.paused():
                return function(*args, **kwargs)

        return call

    def counted(*args, **kwargs):
        steps.append(1)
        with mode:
            return take_step(*args, **kwargs)

    adam = import_module("torch.optim.adam")  # torch.optim does not show it
    monkeypatch.setattr(adam, "adam", on_host(adam.adam))
    monkeypatch.setattr("moekit_kernels.plan.op.check_range", on_host(check_range))
    monkeypatch.setattr("recipes.shared.objective.take_step", counted)
    yield mode.names
    assert steps


@pytest.mark.parametrize("balance", ["switch", "cv2", "bias"])
def test_a_step_of_medvlmoe_does_not_wait_for_the_device(tmp_path, waits, balance):
    train.main(small_config(tmp_path / "run", epochs=1, batch_size=24, balance=balance, class_weights="balanced"))
    assert waits == []


@pytest.mark.parametrize("route_on", ["study", "token"])
def test_a_step_of_several_micro_batches_does_not_wait_for_the_device(tmp_path, waits, route_on):
    config = small_config(tmp_path / "run", epochs=1, batch_size=24, accumulate=2)
    train.main(replace(config, model=replace(config.model, route_on=route_on)))
    assert waits == []


def test_a_step_of_medmoe_waits_for_the_samples_of_each_expert_alone(tmp_path, waits):
    """Cross-scale experts are convolutions over as many samples as an expert has, which the host must know."""
    pretrain.main(pairs_config(tmp_path / "run", epochs=1, balance_weight=0.1))
    assert waits == ["tolist"] * 3  # one in each of three steps


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_is_noticed(read):
    with HostWaits() as mode:
        read(torch.tensor([1.0]))
    assert mode.names


def test_what_does_not_wait_is_not():
    x = torch.randn(4, 3)
    with HostWaits() as mode:
        torch.where(x > 0, x, 0).sum(0)[torch.tensor([0, 2])]
    assert not mode.names


def test_mean_losses_are_those_of_the_model_that_each_step_had(tmp_path):
    """Two steps at a rate of 0, and no bias that is fitted between them: the means are those of the whole split."""
    config = small_config(tmp_path / "run", epochs=1, batch_size=24, augment=False, lr_encoder=0.0, lr_head=0.0)
    config = replace(
        config, model=replace(config.model, dropout=0.0, image_encoder="test_vit", image_stride=None, variant="no-text")
    )
    config = replace(config, train=replace(config.train, balance="switch"))
    train.main(config)
    model, *_ = load_model(config.out)
    source = build_source(config.data, config.model.image_size)
    loader = make_loader(dataset_of(source.train, config, model), replace(config.train, batch_size=48), seed=None)
    (batch,) = loader
    objective = DiagnosisObjective(model, config.train)
    with torch.no_grad():
        record = objective.record(objective.loss(model, batch, torch.ones(2)).sums)
    epoch = json.loads((config.out / "history.jsonl").read_text())
    for name in ("task_loss", "router_entropy", "z_loss"):
        assert epoch[name] == pytest.approx(record[name], rel=1e-5), name
