"""Several processes, sharded or not, train as one does; files are the same whatever the strategy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.medvlmoe import evaluate, train
from recipes.medvlmoe.__main__ import parse_train
from tests.recipes.medvlmoe.test_medvlmoe_train import history as read_history

OPTIONS = (
    "--preset tiny --accelerator cpu --epochs 2 --image-encoder test_vit --image-size 64 --image-stride None "
    "--dropout 0 --no-augment --dim 32 --num-heads 2 --num-experts 4 --expert-hidden-dim 32 --text-tuning frozen "
    "--train-studies 48 --val-studies 17 --test-studies 16"
)
CURVES = ("train_loss", "task_loss", "balance_loss", "z_loss", "router_entropy", "val_loss", "val_macro_auroc")
STOPPING = Path(__file__).with_name("train_and_stop.py")


def torchrun(out, *options, stop_at=99):
    """Two processes with half of the batch each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(STOPPING)]
    command += [*OPTIONS.split(), "--out", str(out), "--batch-size", "8", *options]
    environment = {**os.environ, "STOP_AT": str(stop_at)}
    subprocess.run(command, check=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    train.main(parse_train([*OPTIONS.split(), "--out", str(out), "--batch-size", "16"]))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_two_processes_train_as_one_stopped_and_resumed_under_another_strategy(one_process, tmp_path, first, then):
    """The second epoch needs the first one's weights and moments; the last batch of validation has one study."""
    torchrun(tmp_path, "--strategy", first, stop_at=1)
    assert len(read_history(tmp_path)) == 1
    torchrun(tmp_path, "--strategy", then, "--resume")
    for one, two in zip(read_history(one_process), read_history(tmp_path), strict=True):
        for name in CURVES:
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one_process, tmp_path))
    for name, value in ours["model"].items():
        if not name.endswith("key.bias"):  # the softmax ignores it: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(theirs["model"][name], value, rtol=1e-3, atol=5e-6)
    assert theirs["optimizer"]["state"].keys() == ours["optimizer"]["state"].keys()
    for number, moments in ours["optimizer"]["state"].items():
        assert theirs["optimizer"]["state"][number]["exp_avg"].shape == moments["exp_avg"].shape
    evaluate.main(tmp_path, bootstrap=0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["training"]["samples_per_second"] > 0
    best = max(epoch["val_macro_auroc"] for epoch in read_history(one_process))
    assert metrics["val"]["macro_auroc"] == pytest.approx(best, abs=1e-6)
