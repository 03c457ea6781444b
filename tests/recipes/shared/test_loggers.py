"""Loggers get the record of every epoch, counted from 1, and go on where a resumed run does."""

import builtins
import sys
import types

import pytest

from recipes.shared.loggers import check_loggers, log_record, open_loggers

RECORDS = [
    {"epoch": i, "train_loss": 1.0 / i, "val_macro_auroc": None if i == 1 else 0.5, "load": [1]} for i in (1, 2, 3)
]


def without(monkeypatch, package):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *arguments, **options)

    for name in [
        name for name in sys.modules if name.partition(".")[0] == package or name == "torch.utils.tensorboard"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name):
    without(monkeypatch, name)
    with pytest.raises(ImportError, match=rf'--loggers {name} needs .*pip install "moekit\[loggers\]"'):
        check_loggers([name])


def test_no_logger_needs_nothing(tmp_path):
    check_loggers([])
    with open_loggers([], tmp_path, finished_epochs=0) as log:
        log_record(log, RECORDS[0])
    assert not any(tmp_path.iterdir())


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package that keeps what it is given."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**options):
        run = types.SimpleNamespace(options=options, logged=[], finished=False)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda: setattr(run, "finished", True)
        module.runs.append(run)
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_settings_and_numbers_and_goes_on_as_one_run(wandb, tmp_path):
    (tmp_path / "config.json").write_text('{"seeds": [0]}')

    def killed():
        with open_loggers(["wandb"], tmp_path, finished_epochs=0) as log:
            log_record(log, RECORDS[0])
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed()
    with open_loggers(["wandb"], tmp_path, finished_epochs=1) as log:
        log_record(log, RECORDS[1])
    first, second = wandb.runs
    assert first.finished
    assert first.options["id"] == second.options["id"] == (tmp_path / "wandb.id").read_text().strip()
    assert first.options["config"] == {"seeds": [0]}
    assert (first.options["name"], first.options["dir"]) == (tmp_path.name, str(tmp_path))
    assert first.logged == [(1, {"train_loss": 1.0, "epoch": 1})]
    assert second.logged == [(2, {"train_loss": 0.5, "val_macro_auroc": 0.5, "epoch": 2})]
    with open_loggers(["wandb"], tmp_path, finished_epochs=0):
        pass
    assert wandb.runs[2].options["id"] != first.options["id"]  # a new run in a folder that was emptied


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def test_tensorboard_holds_every_epoch_once_after_a_resumption(tmp_path):
    pytest.importorskip("tensorboard")
    with open_loggers(["tensorboard"], tmp_path, finished_epochs=0) as log:
        for record in RECORDS:
            log_record(log, record)
    with open_loggers(["tensorboard"], tmp_path, finished_epochs=1) as log:
        log_record(log, RECORDS[1] | {"train_loss": 0.25})
    assert scalars(tmp_path / "tensorboard", "train_loss") == [(1, 1.0), (2, 0.25)]
    assert scalars(tmp_path / "tensorboard", "val_macro_auroc") == [(2, 0.5)]


def test_weights_and_biases_itself_takes_what_is_logged(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.json").write_text('{"seeds": [0]}')
    with open_loggers(["wandb"], tmp_path, finished_epochs=0) as log:
        log_record(log, RECORDS[0])
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
