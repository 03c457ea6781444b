"""Pretraining: exact resume, other forms, two processes, streams, the summary."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.data.phantom import phantom_modalities_source
from recipes.medmoe.config import Config
from recipes.medmoe.inference import expert_load, routing
from recipes.medmoe.inference.routing import purity, routing_counts, routing_report
from recipes.medmoe.inference.run import Session
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medmoe.pretrain.summary import summarise
from tests.recipes.medmoe.conftest import small_config

CURVES = (
    "train_loss",
    "global_loss",
    "local_loss",
    "router_loss",
    "val_loss",
    "val_routing_accuracy",
    "router_entropy",
)


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def curves(run):
    return [{name: epoch[name] for name in CURVES} for epoch in history(run)]


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_same_losses(pretrained_run, tmp_path, monkeypatch):
    config = small_config(tmp_path / "killed")
    original, calls = pretrain.pair_losses, 0

    def dying(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 7:  # three batches and two of validation, then the second of the second epoch
            raise KilledError
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "pair_losses", dying)
        with pytest.raises(KilledError):
            pretrain.main(config)
    assert len(history(config.out)) == 1
    torch.manual_seed(99)  # whatever the process did before must not matter
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "new_model", None)  # encoders come from the run's folder, not from a hub again
        pretrain.main(replace(config, resume=True))
    assert curves(config.out) == curves(pretrained_run)
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["model"]
        for run in (config.out, pretrained_run)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_the_run_says_what_it_is(pretrained_run):
    metrics = json.loads((pretrained_run / "metrics.json").read_text())
    assert metrics["run"]["route_on"] == "image"
    assert metrics["run"]["pairs"] == {"train": 48, "val": 24, "test": 40}
    epochs = history(pretrained_run)
    assert metrics["training"]["samples_per_second"] > 0
    assert 0 < metrics["training"]["data_wait"] < 1
    assert metrics["training"]["best_epoch"] == min((1, 2), key=lambda number: epochs[number - 1]["val_loss"])
    of_test = metrics["routing"]
    assert sum(of_test["counts"]) == 40
    assert all(abs(sum(row) - 1) < 1e-9 for row in of_test["matrix"])
    assert metrics["routing_purity"] == of_test["purity"]
    assert sum(of_test["load"]) == pytest.approx(1)
    assert of_test["live_experts"] == sum(share >= 0.25 / 6 for share in of_test["load"])
    assert of_test["live_expected"] == 4
    for record in epochs:
        assert sum(record["load"]) == pytest.approx(1)
        assert record["val_live_experts"] == sum(share >= 0.25 / 6 for share in record["val_load"])
        assert record["val_load_entropy"] <= np.log(6)
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]


@pytest.mark.slow
def test_modalities_that_share_an_expert_are_named_in_console_and_metrics(pretrained_run, tmp_path, monkeypatch):
    run = shutil.copytree(pretrained_run, tmp_path / "run")

    def all_of_the_first(session, split):
        return np.zeros(len(split), np.int64), np.ones(len(split), np.float32)

    monkeypatch.setattr(routing, "chosen_experts", all_of_the_first)
    monkeypatch.setattr(expert_load, "LEAST_SLOTS", 1)  # the test split is small
    line = summarise(run).splitlines()[1]
    assert line.startswith("warning: on the test split 1 of the experts lives, but the images are of 4 modalities")
    assert json.loads((run / "metrics.json").read_text())["routing"]["warning"] in line


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(pretrained_run):
    with pytest.raises(ValueError, match="holds a run already: give --resume"):
        pretrain.main(small_config(pretrained_run))


@pytest.mark.slow
def test_a_run_is_not_resumed_as_another(pretrained_run):
    config = replace(small_config(pretrained_run, lr=0.5), resume=True)
    with pytest.raises(ValueError, match=r"lr \(0.003, now 0.5\)"):
        pretrain.main(config)


def test_no_seed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"seeds \(--seeds\) must name at least one seed"):
        pretrain.main(replace(small_config(tmp_path), seeds=()))


@pytest.mark.slow
def test_routing_by_label_is_pure_and_settings_survive(tmp_path):
    """The label form, grouped norm, aligned logits and two accumulated batches, once through."""
    config = small_config(tmp_path / "label", route_on="label", epochs=1, accumulate=2, local_form="report")
    config = replace(config, model=replace(config.model, expert_norm="group", scale_logits="aligned"))
    pretrain.main(config)
    assert summarise(config.out) == "test routing: purity 1.000, accuracy 1.000, 4 of 6 experts live"
    assert Config.from_json(json.loads((config.out / "config.json").read_text())) == config
    assert history(config.out)[0]["router_loss"] == 0


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    command = [sys.executable, "-m", "recipes.medmoe", "pretrain", "--out", str(tmp_path / "ddp"), "--devices", "2"]
    sizes = ["--train-studies", "32", "--val-studies", "8", "--test-studies", "8", "--image-size", "64"]
    small = ["--batch-size", "8", "--epochs", "1", "--expert-dim", "8", "--dim", "16", "--accelerator", "cpu"]
    done = subprocess.run([*command, *sizes, *small], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    epochs = history(tmp_path / "ddp")
    assert len(epochs) == 1
    assert epochs[0]["train_loss"] > 0
    for line in ("epoch   1/1", "test routing: ", "pretrained: "):
        assert done.stdout.count(line) == 1, done.stdout


def write_shard(path, split, *, broken=False):
    """A WebDataset tar of a split; its last sample may be broken."""
    with tarfile.open(path, "w") as tar:
        for row in range(len(split)):
            study, buffer = split[row], io.BytesIO()
            Image.fromarray(study.image).save(buffer, "png")
            about = {"text": study.text, "modality": study.modality}
            image = b"no image" if broken and row == len(split) - 1 else buffer.getvalue()
            for name, data in ((f"{row}.png", image), (f"{row}.json", json.dumps(about).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return str(path)


@pytest.mark.slow
def test_pretraining_on_a_stream_of_tars_counts_what_it_skips(tmp_path):
    source = phantom_modalities_source(train=13, val=6, test=6, size=64)
    train = write_shard(tmp_path / "train.tar", source.train, broken=True)
    val, test = (write_shard(tmp_path / f"{name}.tar", getattr(source, name)) for name in ("val", "test"))
    config = small_config(tmp_path / "run", epochs=1, batch_size=6)
    shards = replace(config.data.shards, val_shards=val, test_shards=test, steps_per_epoch=4)
    config = replace(config, data=replace(config.data, data=train, shards=shards))
    pretrain.main(config)
    assert history(config.out)[0]["skipped"] in (1, 2)  # twice through the stream
    summarise(config.out)
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["run"]["pairs"] == {"train": 13, "val": 6, "test": 6}
    assert any("could not be read and were skipped" in note for note in metrics["run"]["notes"])


@pytest.mark.slow
def test_another_modality_stops_the_run_at_once(tmp_path):
    config = small_config(tmp_path / "run")
    config = replace(config, model=replace(config.model, modalities=("xray", "ct", "mri")))
    with pytest.raises(ValueError, match="images of the modality 'ultrasound', which is none of xray, ct, mri"):
        pretrain.main(config)


def test_purity_needs_an_expert_of_its_own_for_every_modality():
    labels = np.array([0, 0, 1, 1, 2, 2])
    own = routing_counts(np.array([3, 3, 0, 0, 1, 1]), labels, [0, 1, 2], 4)
    assert own.tolist() == [[0, 0, 0, 2], [2, 0, 0, 0], [0, 2, 0, 0]]
    assert purity(own) == 1
    together = routing_counts(np.zeros(6, int), labels, [0, 1, 2], 4)
    assert purity(together) == pytest.approx(1 / 3)
    half = routing_counts(np.array([0, 0, 1, 0, 2, 2]), labels, [0, 1, 2], 4)
    assert purity(half) == pytest.approx(5 / 6)


@pytest.mark.slow
def test_the_routing_report_leaves_unknown_modalities_out(pretrained_run):
    session = Session.open(pretrained_run)
    split = session.source().test

    class Unknown:
        texts, groups, ids, labels = split.texts, split.groups, split.ids, split.labels
        modalities = (None,) * len(split.texts)

        def __len__(self):
            return len(split)

        def __getitem__(self, index):
            return split[index]

    report = routing_report(session, Unknown())
    assert report["accuracy"] is None
    assert report["purity"] is None
    assert report["matrix"] == []
