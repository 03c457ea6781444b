"""Training: exact resume, early stopping, accumulation, balancing, the learning rate."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.medvlmoe import objective, train
from recipes.medvlmoe.__main__ import parse_train
from recipes.shared.steps import lr_factor
from tests.recipes.medvlmoe.conftest import small_config

CURVES = ("train_loss", "task_loss", "balance_loss", "z_loss", "val_loss", "val_macro_auroc", "router_entropy")


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def curves(run):
    return [{name: epoch[name] for name in CURVES} for epoch in history(run)]


class KilledError(Exception):
    pass


def train_killed(config, monkeypatch, *, epoch, step):
    """Trains until the given step, then dies in the middle of the epoch."""
    original = objective.BalanceLosses.__call__
    calls = 0

    def dying(self, stats):
        nonlocal calls
        calls += 1
        if calls == epoch * 3 + step:  # 48 studies, 16 a batch
            raise KilledError
        return original(self, stats)

    with monkeypatch.context() as patch:
        patch.setattr(objective.BalanceLosses, "__call__", dying)
        with pytest.raises(KilledError):
            train.main(config)


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_same_losses(tmp_path, monkeypatch):
    whole = small_config(tmp_path / "whole", drop_image=0.2, drop_text=0.2)  # what is dropped is no matter of luck
    train.main(whole)
    killed = replace(whole, out=tmp_path / "killed")
    train_killed(killed, monkeypatch, epoch=1, step=2)
    assert len(history(killed.out)) == 1
    torch.manual_seed(99)  # whatever the process did before must not matter
    with monkeypatch.context() as patch:
        patch.setattr(train, "new_model", None)  # encoders come from the run's folder, not from a hub again
        train.main(replace(killed, resume=True))
    assert curves(killed.out) == curves(whole.out)
    ours, theirs = (
        torch.load(c.out / "checkpoints" / "last.ckpt", weights_only=True)["model"] for c in (whole, killed)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_training_learns_and_saves_the_best_epoch(trained_run):
    epochs = history(trained_run)
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    summary = json.loads((trained_run / "training.json").read_text())
    scores = [epoch["val_macro_auroc"] for epoch in epochs]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert summary["best_epoch"] == scores.index(max(scores)) + 1
    best = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == summary["best_epoch"]


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(trained_run):
    with pytest.raises(ValueError, match="holds a run already: give --resume"):
        train.main(small_config(trained_run))


def image_only(config):
    """A model in which nothing is random in training and nothing is kept between batches."""
    return replace(
        config, model=replace(config.model, image_encoder="test_vit", image_stride=None, variant="no-text", dropout=0.0)
    )


@pytest.mark.slow
def test_training_stops_early_without_a_better_epoch(tmp_path):
    config = image_only(small_config(tmp_path / "run", epochs=6, patience=1, lr_encoder=0.0, lr_head=0.0))
    train.main(config)
    assert len(history(config.out)) == 2  # the first is the best of equals, and one more is waited for


@pytest.mark.slow
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups: torch.optim.SGD(groups, lr=1.0))
    weights = []
    for name, batch_size, accumulate in (("whole", 16, 1), ("parts", 4, 4), ("none", 4, 1)):
        settings = {"batch_size": batch_size, "accumulate": accumulate, "balance_weight": 0.0, "z_weight": 0.0}
        config = image_only(small_config(tmp_path / name, epochs=1, clip_norm=0.0, lr_head=0.5, **settings))
        train.main(config)
        weights.append(torch.load(config.out / "checkpoints" / "last.ckpt", weights_only=True)["model"])
    whole, parts, none = weights
    for key in ("head.linear.weight", "image_projection.weight", "fusion.right_output.weight"):
        torch.testing.assert_close(whole[key], parts[key], atol=2e-6, rtol=1e-4)
        assert (whole[key] - none[key]).abs().max() > 1e-3


def sparsely_labelled(folder, val_studies=2):
    """A csv of 12 small images of which most training studies have no known label."""
    rng, rows = np.random.default_rng(0), ["image,split,A,B"]
    for i in range(8 + val_studies + 2):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 8 else "val" if i < 8 + val_studies else "test"
        known = i < 3 or split != "train"
        rows.append(f"{i}.png,{split},{f'{i % 2},{i // 2 % 2}' if known else ','}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


OF_CSV = (
    "--preset tiny --accelerator cpu --image-encoder test_vit --image-size 160 --image-stride None --dropout 0 "
    "--no-augment --label-columns A B --dim 32 --num-heads 2 --expert-hidden-dim 32"
)


def test_a_step_divides_by_its_known_labels_however_they_lie_in_micro_batches(tmp_path, monkeypatch):
    """Eight studies at once, or two by two: the same step, though most micro-batches know few labels or none."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups: torch.optim.SGD(groups, lr=1.0))
    csv = sparsely_labelled(tmp_path)
    steps = []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        out = tmp_path / f"{batch_size}"
        options = (
            f"{OF_CSV} --epochs 1 --warmup-epochs 0 --clip-norm 0 --lr-head 0.1 --balance-weight 0 --z-weight 0.01"
        )
        sizes = f"--batch-size {batch_size} --accumulate {accumulate}"
        train.main(parse_train(["--data", str(csv), "--out", str(out), *options.split(), *sizes.split()]))
        weights = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["model"]
        steps.append((history(out)[0], weights))
    (whole, weights), *others = steps
    assert weights["head.linear.bias"].abs().max() > 1e-4
    for record, parts in others:
        for name in ("train_loss", "task_loss", "z_loss", "router_entropy", "val_loss"):
            assert record[name] == pytest.approx(whole[name], rel=1e-5), name
        for name in ("head.linear.bias", "head.linear.weight", "experts.router.gate.layers.0.weight"):
            torch.testing.assert_close(parts[name], weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_divide_by_the_known_labels_of_both_and_validate_one_study(tmp_path):
    """The second process has no study to validate, and other known labels than the first."""
    csv = sparsely_labelled(tmp_path, val_studies=1)
    options = ["--data", str(csv), *OF_CSV.split(), "--epochs", "2"]
    train.main(parse_train([*options, "--out", str(tmp_path / "one"), "--batch-size", "8"]))
    command = [sys.executable, "-m", "recipes.medvlmoe", "train", *options, "--out", str(tmp_path / "two")]
    command += ["--devices", "2", "--batch-size", "2", "--accumulate", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("trained: ") == 1, done.stdout
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert one["val_macro_auroc"] is None
        for name in ("train_loss", "task_loss", "z_loss", "val_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["cv2", "bias", "printed"])
def test_every_balancing_method_trains(tmp_path, balance):
    config = small_config(tmp_path / balance, epochs=1, balance=balance)
    train.main(config)
    (record,) = history(config.out)
    if balance == "printed":
        assert record["balance_loss"] == pytest.approx(0, abs=1e-6)
    else:
        assert record["balance_loss"] > 0
    weights = torch.load(config.out / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    if balance == "bias":
        assert weights["experts.router.selection_bias"].abs().max() >= 0.01 - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["no-moe", "single-ffn", "no-fusion", "no-text", "vision-only"])
def test_every_ablation_of_table_2_trains(tmp_path, variant):
    config = small_config(tmp_path / variant, epochs=1)
    config = replace(config, model=replace(config.model, variant=variant))
    train.main(config)
    (record,) = history(config.out)
    assert record["val_macro_auroc"] is not None
    assert (record["balance_loss"] is None) == (variant in ("no-moe", "single-ffn", "vision-only"))
    names = torch.load(config.out / "checkpoints" / "last.ckpt", weights_only=True)["model"].keys()
    assert any("text_encoder" in name for name in names) == (variant in ("no-moe", "single-ffn", "no-fusion"))


@pytest.mark.slow
def test_several_seeds_go_to_their_own_folders(tmp_path):
    config = replace(small_config(tmp_path / "run", epochs=1), seeds=(3, 4))
    assert train.main(config) == [tmp_path / "run" / "seed-3", tmp_path / "run" / "seed-4"]
    first, second = (history(tmp_path / "run" / f"seed-{seed}") for seed in (3, 4))
    assert first[0]["train_loss"] != second[0]["train_loss"]


def test_no_seed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"seeds \(--seeds\) must name at least one seed"):
        train.main(replace(small_config(tmp_path), seeds=()))


def test_the_learning_rate_warms_up_and_decays_to_zero():
    factors = [lr_factor(step, 5, epochs=10, warmup_epochs=2) for step in range(50)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert all(a < b for a, b in pairwise(factors[:10]))
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[-1] < 0.01


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_settings(trained_run):
    config = replace(small_config(trained_run), resume=True)
    changed = replace(config, model=replace(config.model, top_k=1), train=replace(config.train, batch_size=8, epochs=9))
    with pytest.raises(
        ValueError, match=r"resumed with the settings .* top_k \(2, now 1\), batch_size \(16, now 8\)\."
    ):
        train.main(changed)
    with pytest.raises(ValueError, match=r"seeds \(\(0,\), now \(1,\)\)"):
        train.main(replace(config, seeds=(1,)))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RuntimeError, match=r"the training loss of epoch 1 is (nan|inf): lower --lr-encoder"):
        train.main(small_config(tmp_path / "run", epochs=1, lr_head=1e30, clip_norm=0.0, warmup_epochs=0.0))
