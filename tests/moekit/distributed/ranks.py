"""Processes that stay, one for each rank, and run what tests hand them."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


class Ranks:
    """``size`` processes in one gloo group.

    Args:
        size: Number of processes.
        folder: For their store.
        preload: Modules to import before the first processes are started, once for all of them.
    """

    def __init__(self, size: int, folder: str, preload: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "moekit.distributed", *preload])
        self.size = size
        pipes = [context.Pipe() for _ in range(size)]
        self.connections = [mine for mine, _ in pipes]
        self.processes = [
            context.Process(target=_work, args=(rank, size, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list:
        """Calls ``function(*arguments, *each[rank])`` on all ranks; returns what each returned.

        Raises:
            RuntimeError: With the traceback of the first rank that raised.
        """
        for rank, connection in enumerate(self.connections):
            connection.send_bytes(pickle.dumps((function, (*arguments, *(each[rank] if each else ())))))
        results = [pickle.loads(connection.recv_bytes()) for connection in self.connections]
        for rank, (_, error) in enumerate(results):
            if error is not None:
                raise RuntimeError(f"rank {rank}: {error}")
        return [value for value, _ in results]

    def close(self) -> None:
        for connection in self.connections:
            connection.send_bytes(b"")
        for process in self.processes:
            process.join(timeout=20)
            process.kill()


class Division(NamedTuple):
    """The first ranks as a mesh of data and experts.

    Attributes:
        mesh: Dimensions ``dp`` and ``ep``.
        group: All ranks of it.
        two_stage: Those of ``ep`` as two nodes; None for an odd number.
    """

    mesh: DeviceMesh
    group: dist.ProcessGroup
    two_stage: DeviceMesh | None


def division(data: int, experts: int) -> Division | None:
    """The first ``data * experts`` ranks; None on the others. Made once in a process."""
    key, size = (data, experts), data * experts
    if key not in _DIVISIONS:
        mesh = DeviceMesh("cpu", torch.arange(size).view(data, experts), mesh_dim_names=("dp", "ep"))
        group, two_stage = dist.new_group(range(size)), None
        if experts % 2 == 0:
            nodes = torch.arange(size).view(data, 2, experts // 2)
            two_stage = DeviceMesh("cpu", nodes, mesh_dim_names=("data", "node", "place"))
        if dist.get_rank() >= size:
            _DIVISIONS[key] = None
        else:
            _DIVISIONS[key] = Division(mesh, group, None if two_stage is None else two_stage["node", "place"])
    return _DIVISIONS[key]


_DIVISIONS: dict[tuple[int, int], Division | None] = {}


def _work(rank: int, size: int, folder: str, connection: Connection) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    while work := connection.recv_bytes():
        try:
            function, arguments = pickle.loads(work)
            result = function(*arguments), None
        except BaseException:
            result = None, traceback.format_exc()
        connection.send_bytes(pickle.dumps(result))
    dist.destroy_process_group()
