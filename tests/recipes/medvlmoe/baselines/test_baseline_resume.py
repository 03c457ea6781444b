"""A run goes on where it stopped, in its contrastive stage too."""

import json
from dataclasses import replace

import pytest

from recipes.medvlmoe import train
from recipes.medvlmoe.baselines.training import ContrastObjective
from recipes.medvlmoe.config import PhantomConfig
from tests.recipes.medvlmoe.baselines.small import small_baseline


def tiny_run(out, **sizes):
    config = small_baseline("biovil", out, batch_size=8, **sizes)
    phantom = PhantomConfig(train_studies=16, val_studies=12, test_studies=12)
    return replace(config, data=replace(config.data, phantom=phantom))


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_a_run_that_stopped_in_its_contrast_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    sizes = {"contrast_epochs": 2, "epochs": 1}
    train.main(tiny_run(whole, **sizes))

    record = ContrastObjective.record
    calls = iter(range(2))

    def interrupted(self, sums):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return record(self, sums)

    monkeypatch.setattr(ContrastObjective, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(tiny_run(halted, **sizes))
    monkeypatch.undo()
    assert not (halted / "config.json").exists()
    with pytest.raises(ValueError, match=r"contrastive holds a run already: give --resume"):
        train.main(tiny_run(halted, **sizes))
    train.main(replace(tiny_run(halted, **sizes), resume=True))
    for folder in ("contrastive", "."):
        one, other = ([drop_times(row) for row in history(run / folder)] for run in (whole, halted))
        assert one == other
    with pytest.raises(ValueError, match="holds a run already"):
        train.main(tiny_run(whole, **sizes))


def drop_times(record):
    kept = ("epoch", "train_", "val_", "lr_", "global")
    return {name: value for name, value in record.items() if name.startswith(kept)}
