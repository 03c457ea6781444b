"""Epochs are numbered from 1; what earlier versions numbered from 0 is renumbered where it is read."""

from recipes.shared.epochs import FIRST_EPOCH, history_from_one, training_from_one


def test_records_keep_or_get_numbers_from_one():
    new = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    assert history_from_one(new) == new
    assert history_from_one([{**record, "epoch": record["epoch"] - 1} for record in new]) == new
    assert history_from_one([]) == []


def test_the_best_epoch_is_renumbered_once():
    new = training_from_one({"epochs": 3, "best_epoch": 0})
    assert new == {"epochs": 3, "best_epoch": 1, **FIRST_EPOCH}
    assert training_from_one(new) == new
    assert training_from_one({}) == {}
    assert training_from_one({"best_epoch": None}) == {"best_epoch": None}
