"""Large contrasts, several processes and killed runs give the numbers of one undisturbed process."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.data.phantom import phantom_modalities_source
from recipes.medmoe import retrieve
from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.pretrain import stage
from tests.recipes.medmoe.test_medmoe_pretrain import history, write_shard

# Encoder without batch norm, and experts but for one form: it would depend on how pairs lie in micro-batches.
OPTIONS = (
    "--preset tiny --accelerator cpu --epochs 2 --image-encoder test_convnext --image-size 64 --expert-norm group "
    "--dim 32 --expert-dim 16 --router-hidden-dim 16 --train-studies 48 --val-studies 17 --test-studies 8 "
    "--balance-weight 0.01 --lr 1e-3"
)
CURVES = ("train_loss", "global_loss", "local_loss", "router_loss", "balance_loss", "val_loss", "router_entropy")
FORMS = {
    "batch": "--gather-local",
    "report": "--local-form report --augment",
    "batch norm": "--gather-local --expert-norm batch",
}
DIVIDED = {
    "batch": ("--expert-parallel 2", ""),
    "report": ("", "--expert-parallel 2"),
    "batch norm": ("--expert-parallel 2", "--expert-parallel 2"),
}
"""How two processes divide the experts in the first epoch of a run, and in the second."""
SCRIPT = Path(__file__).with_name("trainings.py")


def options(form, out, batch_size, accumulate=1, *more):
    sizes = ["--batch-size", str(batch_size), "--accumulate", str(accumulate), "--out", str(out)]
    return [*OPTIONS.split(), *FORMS[form].split(), *sizes, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of one process whose micro-batches are whole steps of sixteen pairs, by form of the local loss."""
    folder = tmp_path_factory.mktemp("whole")
    for form in FORMS:
        stage.main(parse_pretrain(options(form, folder / form, 16, 1, "--sampling", "stratified")))
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The same with two processes, with half of the pairs each, at once and in two micro-batches; divided experts."""
    folder = tmp_path_factory.mktemp("two")
    cached = (4, 2, "--grad-cache", "--sampling", "stratified")
    trainings = [
        (options(form, folder / name / form, *sizes), None)
        for form in ("batch", "report")
        for name, sizes in (("ddp", (8, 1, "--sampling", "stratified")), ("cached", cached))
    ]
    for form, epochs in DIVIDED.items():
        sizes = cached if form == "report" else (8, 1, "--sampling", "stratified")
        command = options(form, folder / "divided" / form, *sizes)
        trainings += [
            ([*command, "--epochs", str(number), *how.split(), "--resume"], None)
            for number, how in enumerate(epochs, start=1)
        ]
    run(trainings, folder, "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return folder


def run(trainings, folder, *launcher, check=True):
    (folder / "trainings.json").write_text(json.dumps(trainings))
    module = ["-m", *launcher] if launcher else []
    command = [sys.executable, *module, str(SCRIPT), str(folder / "trainings.json")]
    return subprocess.run(command, check=check, timeout=500, capture_output=True, text=True)


def same(run, expected):
    for ours, theirs in zip(history(run), history(expected), strict=True):
        for name in CURVES:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name
        assert ours["samples_per_second"] > 0
        assert 0 <= ours["data_wait"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["batch", "report"])
@pytest.mark.parametrize("how", ["ddp", "cached"])
def test_two_processes_train_as_one(whole, two_processes, form, how):
    """Each of them holds a part of every step, with all modalities; losses contrast over both."""
    same(two_processes / how / form, whole / form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_two_processes_that_divide_the_experts_train_as_one(whole, two_processes, form):
    """An expert's batch norm sees the images of both. Each run went on with its experts divided otherwise."""
    divided = two_processes / "divided" / form
    same(divided, whole / form)
    ours, theirs = (
        torch.load(run / form / "checkpoints" / "last.ckpt", weights_only=True)["model"]
        for run in (whole, two_processes / "divided")
    )
    assert list(theirs) == list(ours)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-5)
    expected = retrieve.main(whole / form, split="val")
    assert retrieve.main(divided, split="val")["image_to_text"] == expected["image_to_text"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["batch", "report"])
def test_a_step_in_micro_batches_with_grad_cache_is_that_of_one_large_batch(whole, tmp_path, form):
    command = options(form, tmp_path / "run", 4, 4, "--grad-cache", "--sampling", "stratified")
    stage.main(parse_pretrain(command))
    same(tmp_path / "run", whole / form)


@pytest.mark.slow
def test_without_grad_cache_micro_batches_are_contrasts_of_their_own(whole, tmp_path):
    stage.main(parse_pretrain(options("batch", tmp_path / "run", 4, 4, "--sampling", "stratified")))
    ours, theirs = (history(one)[0]["global_loss"] for one in (tmp_path / "run", whole / "batch"))
    assert ours < 0.8 * theirs  # four pairs to tell apart rather than sixteen


@pytest.mark.slow
def test_a_run_on_tars_that_is_killed_within_an_epoch_goes_on_as_if_nothing_had_been(tmp_path):
    """With other workers than before; the epochs end within passes over the 26 pairs."""
    source = phantom_modalities_source(train=26, val=6, test=6, size=64)
    for name in ("val", "test"):
        write_shard(tmp_path / f"{name}.tar", getattr(source, name))
    for number in range(2):
        write_shard(tmp_path / f"train-{number}.tar", Part(source.train, range(number, 26, 2)))
    tars = ["--data", str(tmp_path / "train-{0..1}.tar"), "--val-shards", str(tmp_path / "val.tar")]
    tars += ["--test-shards", str(tmp_path / "test.tar"), "--steps-per-epoch", "4", "--shuffle-buffer", "8"]

    def command(out, *more):
        return [*options("batch", tmp_path / out, 2, 2, "--grad-cache", "--augment"), *tars, *more]

    killed = command("killed", "--workers", "2", "--epochs", "3")
    stopped = run([(killed, 7)], tmp_path, check=False)  # four steps, one batch of validation: within the second epoch
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert len(history(tmp_path / "killed")) == 1
    stage.main(parse_pretrain(command("killed", "--workers", "1", "--epochs", "3", "--resume")))
    stage.main(parse_pretrain(command("whole", "--workers", "0", "--epochs", "3")))
    for ours, theirs in zip(history(tmp_path / "killed"), history(tmp_path / "whole"), strict=True):
        assert {name: ours[name] for name in CURVES} == {name: theirs[name] for name in CURVES}
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["model"]
        for name in ("killed", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((tmp_path / "killed" / "training.json").read_text())["train_pairs"] == 26
    (tmp_path / "train-1.tar").write_bytes((tmp_path / "val.tar").read_bytes())
    with pytest.raises(ValueError, match=r"is not as it was when .* was trained: the tars of train differ"):
        stage.main(parse_pretrain(command("killed", "--epochs", "4", "--resume")))


class Part:
    """Some pairs of a split."""

    def __init__(self, split, rows):
        self.split, self.rows = split, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.split[self.rows[place]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--grad-cache"], r"grad_cache \(--grad-cache\) contrasts the micro-batches .* give --accumulate"),
        (["--gather-local", "--local-form", "report"], r"gather_local \(--gather-local\) .* give --local-form batch"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        stage.main(parse_pretrain(["--preset", "tiny", "--out", str(tmp_path / "run"), *change]))
