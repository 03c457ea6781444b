"""A small trained run, shared by the tests of the stages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


OPTIONS = (
    "--preset tiny --accelerator cpu --epochs 1 --batch-size 8 --image-size 32 --dim 32 --num-heads 2 --num-experts 2 "
    "--expert-hidden-dim 32 --label-columns sick"
)
SMALL = OPTIONS.split()


@pytest.fixture(scope="session")
def note_table(tmp_path_factory):
    """Twelve images with notes in the column ``clinical``."""
    folder = tmp_path_factory.mktemp("notes")
    rows = ["image,clinical,split,sick"]
    for i in range(12):
        Image.fromarray(np.full((32, 32), 20 * i, np.uint8)).save(folder / f"{i}.png")
        note = f"patient {i} came with fever and a dry cough for some days"
        rows.append(f"{i}.png,{note},{('train', 'train', 'val', 'test')[i % 4]},{i // 4 % 2}")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    return folder / "set.csv"


@pytest.fixture(scope="session")
def image_run(note_table):
    """A run on that table that reads no text."""
    from recipes.medvlmoe import train
    from recipes.medvlmoe.__main__ import parse_train

    out = note_table.parent / "without"
    train.main(parse_train(["--data", str(note_table), "--out", str(out), *SMALL]))
    return out
