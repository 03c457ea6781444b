"""A small pretrained run, shared by the tests of the stages."""

from dataclasses import replace
from pathlib import Path

import pytest

from recipes.medmoe.config import Config, PhantomConfig, tiny


def small_config(out: Path, *, route_on: str = "image", **train: object) -> Config:
    """The tiny preset on a phantom small enough for a test."""
    base = tiny()
    data = replace(base.data, phantom=PhantomConfig(train_studies=48, val_studies=24, test_studies=40))
    model = replace(
        base.model, image_size=64, dim=32, expert_dim=16, expert_depth=1, router_hidden_dim=16, route_on=route_on
    )
    # The printed local branch; test_medmoe_local_branch.py tests the options that the preset takes.
    printed = {"local_scales": (), "attention": "dot", "mask_padding": False, "temperatures": (0.2, 1.0, 20.0)}
    model = replace(model, **printed)
    settings = {"epochs": 2, "batch_size": 16, "accelerator": "cpu"} | train
    return replace(base, out=out, data=data, model=model, train=replace(base.train, **settings))


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with its facts and its routing. Do not write into it: copy it first."""
    from recipes.medmoe.pretrain import stage as pretrain
    from recipes.medmoe.pretrain.summary import summarise

    out = tmp_path_factory.mktemp("runs") / "small"
    pretrain.main(small_config(out))
    summarise(out)
    return out
