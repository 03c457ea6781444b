"""Steps of training: losses are means over the whole step, and checkpoints go on only where they fit."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.checkpoints import load_weights, restore_checkpoint, save_checkpoints
from recipes.shared.settings import TrainSettings
from recipes.shared.steps import optimiser_steps, set_learning_rates, take_step
from recipes.shared.sums import DeviceSums
from recipes.shared.training import NEW_RUN, check_on_first_rank, run_epochs
from recipes.shared.weight_decay import parameter_groups


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def setup(fabric, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    groups = parameter_groups(model, weight_decay=0.0, rates={"all": 1.0}, part_of=lambda name: "all")
    return model, torch.optim.SGD(groups, lr=0.0)


def test_a_step_is_the_same_however_its_known_labels_lie_in_micro_batches(fabric):
    x = torch.randn(8, 3)
    known = torch.zeros(8, 2)
    known[0] = known[5, 0] = 1  # three labels: two in the first quarter, one in the third
    weights = []
    for size in (8, 4, 2):
        model, optimizer = setup(fabric)
        wrapped, optimizer = fabric.setup(model, optimizer)
        set_learning_rates(optimizer, 0.5)
        take_step(
            fabric,
            wrapped,
            optimizer,
            list(zip(x.split(size), known.split(size), strict=True)),
            counts_of=lambda batch: torch.stack([batch[1].sum(), torch.tensor(len(batch[0]))]),
            loss_of=lambda batch, shares, wrapped=wrapped: (
                shares[0] * (wrapped(batch[0]).square() * batch[1]).sum() / batch[1].sum().clamp(min=1)
                + shares[1] * wrapped(batch[0]).mean()
            ),
            clip_norm=0.0,
        )
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])
    model, _ = setup(fabric)
    loss = (model(x).square() * known).sum() / 3 + model(x).mean()
    (gradient,) = torch.autograd.grad(loss, model.weight)
    torch.testing.assert_close(weights[0], model.weight - 0.5 * gradient)


def test_a_step_without_any_known_label_moves_nothing(fabric):
    model, optimizer = setup(fabric)
    before = model.weight.detach().clone()
    wrapped, optimizer = fabric.setup(model, optimizer)
    set_learning_rates(optimizer, 1.0)
    take_step(
        fabric,
        wrapped,
        optimizer,
        [torch.randn(2, 3)],
        counts_of=lambda batch: torch.zeros(1, dtype=torch.int64),
        loss_of=lambda batch, shares: shares[0] * wrapped(batch).sum(),
        clip_norm=1.0,
    )
    assert torch.equal(model.weight, before)


def test_sums_keep_names_shapes_and_double_precision(fabric, monkeypatch):
    """One rank has nothing to reduce; sums come as float64, in which small parts are not lost and counts are exact."""
    monkeypatch.setattr(Fabric, "all_reduce", None)
    sums = DeviceSums()
    for loss in (1.0, 2.0**-40):
        value = torch.tensor(loss, requires_grad=True)
        sums.add({"loss": value, "tokens": torch.tensor([2**24 + 1, 0])})
    totals = sums.over_ranks(fabric)
    assert not totals["loss"].requires_grad
    assert totals["loss"].item() == 1.0 + 2.0**-40
    assert totals["tokens"].tolist() == [2**25 + 2, 0]
    assert DeviceSums().over_ranks(fabric) == {}


def test_steps_hold_all_micro_batches_and_the_last_one_what_is_left(fabric):
    settings = TrainSettings(epochs=2, warmup_epochs=1, accumulate=3)
    steps = list(optimiser_steps(fabric, range(100), 7, settings, epoch=0))
    assert [step.micro_batches for step in steps] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [step.factor for step in steps] == pytest.approx([1 / 3, 2 / 3, 1.0])


class Rank:
    """One of several ranks, to which the first one sends ``message``."""

    def __init__(self, rank, message=None):
        self.is_global_zero, self.message, self.strategy = rank == 0, message, None

    def broadcast(self, own):
        return own if self.is_global_zero else self.message

    def barrier(self):
        pass

    def print(self, line):
        pass


def test_a_check_of_the_first_rank_stops_all_of_them():
    """Else the others would wait for the first one for ever."""
    calls = []

    def check():
        calls.append(1)
        raise ValueError("an image cannot be read")

    for rank in (Rank(0), Rank(1, message="an image cannot be read")):
        with pytest.raises(ValueError, match="an image cannot be read"):
            check_on_first_rank(rank, check)
    check_on_first_rank(Rank(1), check)
    assert len(calls) == 1


def test_the_score_of_the_first_rank_stops_all_of_them(fabric, tmp_path):
    """This rank's own gets better in every epoch, the first one's never does after the first."""
    scores, state = iter(range(10)), NEW_RUN | {"history": []}
    run_epochs(
        Rank(1, message={"val_loss": 1.0}),
        *setup(fabric),
        state,
        TrainSettings(epochs=9, patience=2),
        out=tmp_path,
        started=0.0,
        train_epoch=lambda epoch: {"epoch": epoch + 1, "train_loss": 1.0},
        validate=lambda: {"val_loss": -next(scores)},
        score=lambda record: -record["val_loss"],
        line=str,
        remedy="",
    )
    assert [record["val_loss"] for record in state["history"]] == [1.0] * 3


def checkpoint(fabric, tmp_path):
    model, optimizer = setup(fabric)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    save_checkpoints(tmp_path, model, optimizer, fabric, NEW_RUN | {"epoch": 1, "history": [{"epoch": 1}]}, better=True)
    return model, tmp_path / "checkpoints" / "last.ckpt"


def test_a_checkpoint_comes_back_with_its_state(fabric, tmp_path):
    model, path = checkpoint(fabric, tmp_path)
    other, optimizer = setup(fabric, seed=1)
    state = restore_checkpoint(path, other, optimizer, fabric)
    assert torch.equal(other.weight, model.weight)
    assert state == NEW_RUN | {"epoch": 1, "history": [{"epoch": 1}]}
    last, _ = setup(fabric, seed=2)
    load_weights(last, tmp_path, "best")
    assert torch.equal(last.weight, model.weight)


def test_a_checkpoint_whose_parameters_were_grouped_otherwise_is_not_gone_on_with(fabric, tmp_path):
    """Older versions chose what decays by the number of dimensions and wrote no names."""
    _, path = checkpoint(fabric, tmp_path)
    content = torch.load(path, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        del group["names"]
    torch.save(content, path)
    model, optimizer = setup(fabric)
    with pytest.raises(ValueError, match=r"grouped parameters otherwise .* Its weights can still be evaluated"):
        restore_checkpoint(path, model, optimizer, fabric)


def test_a_missing_checkpoint_is_an_error(fabric, tmp_path):
    with pytest.raises(ValueError, match=r"best\.ckpt does not exist: train the run first"):
        load_weights(nn.Linear(1, 1), tmp_path, "best")
