"""A small trained run, shared by the tests of the stages."""

from dataclasses import replace
from pathlib import Path

import pytest

from recipes.medvlmoe.config import Config, PhantomConfig, tiny


def small_config(out: Path, **train: object) -> Config:
    """The tiny preset on a phantom small enough for a test."""
    base = tiny()
    data = replace(base.data, phantom=PhantomConfig(train_studies=48, val_studies=32, test_studies=40))
    model = replace(
        base.model,
        image_encoder="test_efficientnet",
        image_size=64,
        dim=32,
        num_heads=2,
        num_experts=4,
        expert_hidden_dim=32,
        text_tokens=64,
    )
    settings = {"epochs": 3, "batch_size": 16, "accelerator": "cpu"} | train
    return replace(base, out=out, data=data, model=model, train=replace(base.train, **settings))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, evaluated."""
    from recipes.medvlmoe import evaluate, train

    out = tmp_path_factory.mktemp("runs") / "small"
    train.main(small_config(out))
    evaluate.main(out, bootstrap=50)
    return out
