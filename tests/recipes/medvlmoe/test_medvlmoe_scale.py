"""Several processes, sharded or not, train as one does; files are the same whatever the strategy."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.medvlmoe import evaluate, train
from recipes.medvlmoe.__main__ import parse_train
from recipes.shared.runs import read_json
from tests.recipes.medvlmoe.test_medvlmoe_train import history as read_history
from tests.recipes.medvlmoe.trainings import without_dropout

OPTIONS = (
    "--preset tiny --accelerator cpu --epochs 2 --image-encoder test_vit --image-size 64 --image-stride None "
    "--dropout 0 --no-augment --dim 32 --num-heads 2 --num-experts 4 --expert-hidden-dim 32 "
    "--train-studies 48 --val-studies 17 --test-studies 16"
)
FROZEN = "--text-tuning frozen"
CURVES = ("train_loss", "task_loss", "balance_loss", "z_loss", "router_entropy", "val_loss", "val_macro_auroc")
ADAPTED = "--epochs 1 --precision bf16-mixed --image-tuning lora --text-tuning lora"
ALL_AT_ONCE = f"{ADAPTED} --strategy fsdp2 --expert-parallel 2 --activation-checkpointing"
RUNS = {
    "ddp": ("--strategy ddp", "--strategy fsdp2"),
    "fsdp2": ("--strategy fsdp2", "--strategy ddp"),
    "divided ddp": ("--strategy ddp --expert-parallel 2", "--strategy fsdp2 --expert-parallel 2"),
    "divided fsdp2": ("--strategy fsdp2 --expert-parallel 2", "--strategy ddp"),
}
"""How two processes train the first epoch of a run, and the second."""


def command(options, out, batch_size, *more):
    return [*OPTIONS.split(), *options.split(), "--out", str(out), "--batch-size", str(batch_size), *more]


def train_alone(options, out):
    train.main(parse_train(command(options, out, 16)))
    return out


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return train_alone(FROZEN, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Runs of two processes with half of the batch each, one after the other: starting processes takes the time."""
    folder = tmp_path_factory.mktemp("two")
    trainings = []
    for name, (first, then) in RUNS.items():
        run = command(FROZEN, folder / name, 8)
        trainings += [([*run, *first.split()], 1), ([*run, *then.split(), "--resume"], None)]
    trainings.append((command(ALL_AT_ONCE, folder / "all", 8), None))
    (folder / "trainings.json").write_text(json.dumps(trainings))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("trainings.py")
    subprocess.run([*torchrun, str(script), str(folder / "trainings.json")], check=True, timeout=500)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_stopped_and_resumed_in_another_way(one_process, two_processes, name):
    """The second epoch needs the first one's weights and moments; the last batch of validation has one study."""
    run = two_processes / name
    settings = read_json(run / "config.json")["train"]
    shown = f"--strategy {settings['strategy']} --expert-parallel {settings['expert_parallel']}"
    assert shown.startswith(RUNS[name][1])
    for one, two in zip(read_history(one_process), read_history(run), strict=True):
        for name in CURVES:
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
    ours, theirs = (torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (one_process, run))
    for name, value in ours["model"].items():
        if not name.endswith("key.bias"):  # the softmax ignores it: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(theirs["model"][name], value, rtol=1e-3, atol=5e-6)
    assert theirs["optimizer"]["state"].keys() == ours["optimizer"]["state"].keys()
    for number, moments in ours["optimizer"]["state"].items():
        assert theirs["optimizer"]["state"][number]["exp_avg"].shape == moments["exp_avg"].shape
    evaluate.main(run, bootstrap=0)
    metrics = read_json(run / "metrics.json")
    assert metrics["training"]["samples_per_second"] > 0
    best = max(epoch["val_macro_auroc"] for epoch in read_history(one_process))
    assert metrics["val"]["macro_auroc"] == pytest.approx(best, abs=1e-6)


@pytest.mark.slow
def test_sharding_goes_with_bf16_divided_experts_checkpointing_and_adapters_at_once(
    two_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "new_model", without_dropout(train.new_model))
    run = two_processes / "all"
    (record,), (alone,) = read_history(run), read_history(train_alone(ADAPTED, tmp_path))
    assert record["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)  # bf16 has 8 bits
    assert math.isfinite(record["val_loss"])
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    adapters = {name: value for name, value in weights.items() if ".lora_B." in name}
    assert {name.partition(".")[0] for name in adapters} == {"image_encoder", "text_encoder"}
    assert all(value.abs().max() > 0 for value in adapters.values())
    assert evaluate.main(run, bootstrap=0)["val"]["studies"] == 17
