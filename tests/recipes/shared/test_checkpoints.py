"""Checkpoints: in which order they are written, and the errors about those that cannot be used."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared import checkpoints
from recipes.shared.checkpoints import load_weights, restore_checkpoint, save_checkpoints
from recipes.shared.training import NEW_RUN
from recipes.shared.weight_decay import parameter_groups


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def setup(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    groups = parameter_groups(model, weight_decay=0.0, rates={"all": 1.0}, part_of=lambda name: "all")
    return model, torch.optim.SGD(groups, lr=0.0)


def save(fabric, folder, *, epoch, best_epoch, seed=0):
    model, optimizer = setup(seed)
    state = NEW_RUN | {"epoch": epoch, "best_epoch": best_epoch, "history": [{"epoch": i + 1} for i in range(epoch)]}
    save_checkpoints(folder, model, optimizer, fabric, state, better=best_epoch == epoch)
    return model


def test_a_run_killed_between_its_two_checkpoints_keeps_the_best_weights(fabric, tmp_path, monkeypatch):
    save(fabric, tmp_path, epoch=1, best_epoch=1)
    written = []

    def killed(path, content):
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(path, content)

    write = checkpoints.write_checkpoint
    monkeypatch.setattr(checkpoints, "write_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        save(fabric, tmp_path, epoch=2, best_epoch=2, seed=1)
    assert written == ["best.ckpt", "last.ckpt"]
    state = restore_checkpoint(tmp_path / "checkpoints" / "last.ckpt", *setup(), fabric)
    assert state["epoch"] == 1  # the second epoch is trained again


def test_a_best_checkpoint_that_is_older_than_the_best_epoch_is_written_anew(fabric, tmp_path):
    """So a version left it that wrote it after last.ckpt, if it was killed in between."""
    save(fabric, tmp_path, epoch=1, best_epoch=1)
    stale = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    best = save(fabric, tmp_path, epoch=2, best_epoch=2, seed=1)
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(stale)
    restore_checkpoint(tmp_path / "checkpoints" / "last.ckpt", *setup(), fabric)
    model, _ = setup(2)
    load_weights(model, tmp_path, "best")
    assert torch.equal(model.weight, best.weight)


def test_a_best_checkpoint_that_is_lost_stops_the_resumption(fabric, tmp_path):
    save(fabric, tmp_path, epoch=1, best_epoch=1)
    save(fabric, tmp_path, epoch=2, best_epoch=1)
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(ValueError, match=r"best\.ckpt holds the weights of epoch 0, but the best epoch .* is 1"):
        restore_checkpoint(tmp_path / "checkpoints" / "last.ckpt", *setup(), fabric)


def test_a_checkpoint_that_numbered_epochs_from_0_is_renumbered(fabric, tmp_path):
    model, optimizer = setup()
    history = [{"epoch": 0, "val_loss": 2.0}, {"epoch": 1, "val_loss": 3.0}, {"epoch": 2, "val_loss": 4.0}]
    first = NEW_RUN | {"epoch": 1, "best_epoch": 0, "history": history[:1]}
    save_checkpoints(tmp_path, model, optimizer, fabric, first, better=True)
    save_checkpoints(tmp_path, model, optimizer, fabric, first | {"epoch": 3, "history": history}, better=False)
    state = restore_checkpoint(tmp_path / "checkpoints" / "last.ckpt", *setup(), fabric)
    assert (state["epoch"], state["best_epoch"]) == (3, 1)
    assert [(record["epoch"], record["val_loss"]) for record in state["history"]] == [(1, 2.0), (2, 3.0), (3, 4.0)]


def damaged(path, kind):
    content = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "no checkpoint":
        path.write_bytes(b"PK\x03\x04 something else")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "bare weights":
        torch.save(nn.Linear(3, 2).state_dict(), path)
    elif kind == "another model":
        torch.save({"model": nn.Conv1d(3, 2, 1, bias=False).state_dict() | {"x": torch.zeros(1)}, "epoch": 1}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", r"best\.ckpt is empty"),
        ("truncated", r"best\.ckpt cannot be read as a checkpoint \("),
        ("no checkpoint", r"best\.ckpt cannot be read as a checkpoint \("),
        ("text", r"best\.ckpt cannot be read as a checkpoint \("),
        ("a tensor", r"best\.ckpt holds no model, so it is no checkpoint of a run"),
        ("bare weights", r"best\.ckpt holds no model, so it is no checkpoint of a run"),
        (
            "another model",
            r"best\.ckpt holds the weights of another model: 1 missing \(such as bias\), 1 unexpected \(such as x\), 1 "
            r"of another shape \(such as weight\)",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(fabric, tmp_path, kind, message):
    save(fabric, tmp_path, epoch=1, best_epoch=1)
    damaged(tmp_path / "checkpoints" / "best.ckpt", kind)
    with pytest.raises(ValueError, match=f"{message}.*--checkpoint last or best"):
        load_weights(setup()[0], tmp_path, "best")


def test_the_weights_alone_are_no_checkpoint_to_go_on_from(fabric, tmp_path):
    save(fabric, tmp_path, epoch=1, best_epoch=1)
    with pytest.raises(ValueError, match=r"best\.ckpt holds no optimizer and no scaler .* is no checkpoint of a run"):
        restore_checkpoint(tmp_path / "checkpoints" / "best.ckpt", *setup(), fabric)
