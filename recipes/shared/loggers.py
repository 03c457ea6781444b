"""Sends the record of every epoch to TensorBoard or to Weights & Biases, besides ``history.jsonl``."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from recipes.shared.extras import require
from recipes.shared.runs import read_json

EXTRA = "loggers"
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Log(Protocol):
    """Takes the numbers of an epoch, counted from 1."""

    def __call__(self, values: Mapping[str, float], epoch: int) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """Refuses loggers whose package is missing, before anything is trained.

    Args:
        names: ``"tensorboard"``, ``"wandb"``.

    Raises:
        ImportError: Naming the package and the command that installs it.
    """
    for name in names:
        require(_MODULES[name], f"--loggers {name}", extra=EXTRA)


@contextmanager
def open_loggers(names: Sequence[str], out: Path, *, finished_epochs: int) -> Iterator[Log]:
    """Opens loggers and yields what takes the record of each epoch; closes them at the end, whatever happens.

    TensorBoard's files go to ``OUT/tensorboard``. Weights & Biases gets the settings of ``config.json``, a run named
    after the folder, and an id that is kept in ``wandb.id``, so that a resumed run goes on as the same one; where it
    sends them to is set by its own environment variables, such as ``WANDB_MODE=offline``.

    Args:
        names: ``"tensorboard"``, ``"wandb"``; none for no logger.
        out: Folder of the run.
        finished_epochs: Epochs that the run has behind it; TensorBoard drops what was logged after them.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(_OPENERS[name](out, finished_epochs)) for name in names]

        def log(values: Mapping[str, float], epoch: int) -> None:
            for each in logs:
                each(values, epoch)

        yield log


def log_record(log: Log, record: Mapping[str, Any]) -> None:
    """Passes the numbers of an epoch's record on; what is not known in an epoch is left out.

    Args:
        log: Of :func:`open_loggers`.
        record: A line of ``history.jsonl``, whose ``epoch`` counts from 1.
    """
    numbers = {
        name: float(value)
        for name, value in record.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    log(numbers, record["epoch"])


@contextmanager
def _tensorboard(out: Path, finished_epochs: int) -> Iterator[Log]:
    module = require(_MODULES["tensorboard"], "--loggers tensorboard", extra=EXTRA)
    writer = module.SummaryWriter(str(out / "tensorboard"), purge_step=finished_epochs + 1 if finished_epochs else None)

    def log(values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(out: Path, finished_epochs: int) -> Iterator[Log]:
    wandb = require(_MODULES["wandb"], "--loggers wandb", extra=EXTRA)
    kept = out / "wandb.id"
    if not (finished_epochs and kept.is_file()):
        kept.write_text(uuid.uuid4().hex[:12] + "\n")
    run = wandb.init(
        project="moekit",
        name=out.resolve().name,
        id=kept.read_text().strip(),
        resume="allow",
        dir=str(out),
        config=read_json(out / "config.json"),
    )
    try:
        yield partial(_log_wandb, run)
    finally:
        run.finish()


def _log_wandb(run: Any, values: Mapping[str, float], epoch: int) -> None:
    run.log({**values, "epoch": epoch}, step=epoch)


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb}
