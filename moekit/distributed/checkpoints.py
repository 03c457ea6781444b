"""Checkpoints of models whose parameters are divided among ranks in any way, which a killed process cannot spoil."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load  # pyright: ignore[reportUnknownVariableType]
from torch.distributed.checkpoint.state_dict_saver import (  # pyright: ignore[reportUnknownVariableType]
    async_save,  # pyright: ignore[reportUnknownVariableType]
    save,  # pyright: ignore[reportUnknownVariableType]
)

from moekit.checks import check_not_negative, check_positive
from moekit.distributed.rebalance import prepare_optimizer_


class Checkpoints:
    """The last few checkpoints of a training in one folder.

    Each is a folder of :mod:`torch.distributed.checkpoint`, ``step-00000100``. It counts from the moment when its
    metadata stand there, which torch writes last and in one piece: what a killed process leaves half written is passed
    over and removed later. Any number of ranks, and any division of experts and data among them, loads any other's. A
    training that goes on from an earlier step removes the later ones once it has saved its own.

    Args:
        folder: On a file system that all ranks share. Made with the first checkpoint.
        keep: How many whole checkpoints stay.
        process_group: All ranks that train; the default group if None.

    Raises:
        ValueError: If ``keep`` is below 1.

    Example:
        >>> checkpoints = Checkpoints("runs/lm")
        >>> step = checkpoints.load(model, optimizer) or 0  # doctest: +SKIP
        >>> checkpoints.save(step + 100, model, optimizer)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, process_group: dist.ProcessGroup | None = None) -> None:
        check_positive("keep", keep)
        self.folder, self.keep, self.process_group = Path(folder), keep, process_group
        self._pending: Any = None
        self._writers: dist.ProcessGroup | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending."""
        return sorted(int(path.parent.name.removeprefix("step-")) for path in self.folder.glob("step-*/.metadata"))

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, asynchronous: bool = False
    ) -> None:
        """Writes model and optimizer; all ranks must call it.

        Args:
            step: Steps that were made.
            model: The model.
            optimizer: Its optimizer.
            asynchronous: Whether to copy the tensors, return, and write in a thread. The next save, :meth:`wait` and
                :meth:`load` wait for it. A process that ends before loses this checkpoint, and no earlier one.

        Raises:
            ValueError: If ``step`` is negative, or that of the only checkpoint, which a killed process would lose.
        """
        check_not_negative("step", step)
        self.wait()
        if self.steps() == [step]:
            raise ValueError(f"step must be another than that of the only checkpoint in {self.folder}, got {step}.")
        path = self._path(step)
        self._barrier()
        if self._is_first():
            _remove(path)  # half written before, or of a training that went on from an earlier step
        self._barrier()
        state = _state(model, optimizer)
        if asynchronous:
            self._pending = step, async_save(state, checkpoint_id=str(path), process_group=self._group_of_writers())
        else:
            save(state, checkpoint_id=str(path), process_group=self.process_group)
            self._remove_others(step)

    def wait(self) -> None:
        """Waits for an asynchronous save, and raises what it raised."""
        if self._pending is not None:
            (step, pending), self._pending = self._pending, None
            pending.result()
            self._barrier()
            self._remove_others(step)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int | None = None, *, strict: bool = True
    ) -> int | None:
        """Loads a checkpoint in place; all ranks must call it.

        Args:
            model: The model, divided in any way.
            optimizer: Its optimizer.
            step: Which; the last whole one if None.
            strict: Whether the checkpoint must hold all that model and optimizer have. A module of a list that never
                had a token has no optimizer state.

        Returns:
            Its step; None where there is none.

        Raises:
            ValueError: If there is no whole checkpoint of ``step``.
        """
        self.wait()
        steps = self.steps()
        if step is None and not steps:
            return None
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            raise ValueError(f"step must be one of the checkpoints in {self.folder}, {steps}, got {step}.")
        state = _state(model, optimizer)
        planner = DefaultLoadPlanner(allow_partial_load=not strict)
        load(state, checkpoint_id=str(self._path(chosen)), process_group=self.process_group, planner=planner)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return chosen

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _group_of_writers(self) -> dist.ProcessGroup | None:
        """Returns a group of the same ranks: collectives of the writing thread must not mix with those of training."""
        if self._writers is None and dist.is_initialized():
            ranks = dist.get_process_group_ranks(self.process_group or dist.group.WORLD)
            self._writers = cast(dist.ProcessGroup, dist.new_group(ranks, backend="gloo"))
        return self._writers

    def _is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank(self.process_group) == 0

    def _barrier(self) -> None:
        if dist.is_initialized():
            dist.barrier(group=self.process_group)

    def _remove_others(self, last: int) -> None:
        """Leaves the last whole checkpoints up to ``last``; what is half written, or later, goes."""
        if not self._is_first():
            return
        kept = {self._path(step) for step in [step for step in self.steps() if step <= last][-self.keep :]}
        for path in self.folder.glob("step-*"):
            if path not in kept:
                _remove(path)


def _remove(path: Path) -> None:
    """Removes a checkpoint, its metadata first: a process that is killed here leaves none that looks whole."""
    (path / ".metadata").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    prepare_optimizer_(model, optimizer)  # states of placed experts in the order of the experts
    parts = cast(tuple[dict[str, Any], dict[str, Any]], get_state_dict(model, optimizer))
    return {"model": parts[0], "optimizer": parts[1]}
