"""Ranks that die or stall, and trainings that are killed while they save."""

import multiprocessing
import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from moekit import SparseMoE
from moekit.distributed import Checkpoints, ExchangeError, average_gradients_, expert_parallel_

pytestmark = pytest.mark.slow

TIMEOUT, STEPS = 20.0, 12


def start(target: Any, ranks: int, *arguments: Any) -> list[Any]:
    """One process for each rank, forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "moekit.distributed"])
    processes = [context.Process(target=target, args=(rank, ranks, *arguments), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def join(rank: int, ranks: int, store: str, timeout: float) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
    )
    return init_device_mesh("cpu", (ranks,), mesh_dim_names=("ep",))


def faulty(rank: int, ranks: int, folder: str, fault: signal.Signals) -> None:
    """The last rank sends itself a signal before its third step; the others write down what they get."""
    layer = expert_parallel_(SparseMoE.ffn(6, 5, 8, 2), join(rank, ranks, f"{folder}/store", TIMEOUT)["ep"])
    begun = time.monotonic()
    try:
        for step in range(5):
            if rank == ranks - 1 and step == 2:
                os.kill(os.getpid(), fault)
            begun = time.monotonic()
            layer(torch.randn(4, 6)).output.sum().backward()
    except ExchangeError as error:
        Path(folder, f"rank{rank}").write_text(f"{time.monotonic() - begun}\n{error}")
    os._exit(0)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_all_other_ranks_raise_within_the_timeout(tmp_path: Path, fault: signal.Signals) -> None:
    processes = start(faulty, 3, str(tmp_path), fault)
    for process in processes[:2]:
        process.join(timeout=TIMEOUT + 60)
        assert not process.is_alive()
    processes[2].kill()
    for rank in range(2):
        seconds, message = (tmp_path / f"rank{rank}").read_text().split("\n", 1)
        assert float(seconds) < TIMEOUT + 10  # and the time that a busy machine takes to raise
        assert message.startswith(f"rank {rank} could not complete an exchange among the ranks [0, 1, 2]: one of them")


def train(rank: int, ranks: int, folder: str, store: str, saves: bool, asynchronous: bool) -> None:
    """Trains to the last step, from the last checkpoint if there is one; appends each loss to a file."""
    mesh = join(rank, ranks, store, 60)
    torch.manual_seed(0)
    layer = expert_parallel_(SparseMoE.ffn(6, 40, 8, 2), mesh["ep"])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, foreach=False)
    checkpoints = Checkpoints(f"{folder}/checkpoints")
    first = (checkpoints.load(layer, optimizer) or 0) if saves else 0
    for step in range(first, STEPS):
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(100 * step + rank))
        loss = (layer(x).output - x.flip(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        average_gradients_(layer)
        optimizer.step()
        with Path(folder, f"losses{rank}").open("a") as file:
            file.write(f"{step} {loss.item().hex()}\n")
        if saves:
            checkpoints.save(step + 1, layer, optimizer, asynchronous=asynchronous)
    if saves:
        checkpoints.wait()
    os._exit(0)


def losses(folder: Path, rank: int) -> dict[int, set[str]]:
    """Every loss that was written for a step."""
    written: dict[int, set[str]] = {}
    for line in (folder / f"losses{rank}").read_text().splitlines():
        if len(parts := line.split(" ")) == 2 and parts[1].startswith(("0x", "-0x")):
            written.setdefault(int(parts[0]), set()).add(parts[1])
    return written


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_training_that_is_killed_at_random_gives_the_losses_of_one_that_is_not(tmp_path, asynchronous) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    for folder in (plain, killed):
        folder.mkdir()
    for process in start(train, 2, str(plain), str(tmp_path / "store"), False, False):
        process.join(timeout=120)
        assert process.exitcode == 0
    chance, kills = random.Random(0), 0
    for attempt in range(60):
        processes = start(train, 2, str(killed), str(tmp_path / f"store{attempt}"), True, asynchronous)
        if kills < 10:
            first = len(losses(killed, 0)) if (killed / "losses0").exists() else 0
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and any(each.is_alive() for each in processes):
                if (killed / "losses0").exists() and len(losses(killed, 0)) > first:
                    break
                time.sleep(0.01)
            time.sleep(chance.random() * 0.05)
            alive = [each for each in processes if each.is_alive()]
            kills += bool(alive)
            for process in processes:
                process.kill()
        for process in processes:
            process.join(timeout=120)
        if all(process.exitcode == 0 for process in processes):
            break
    assert kills >= 5
    for rank in range(2):
        assert losses(killed, rank) == losses(plain, rank)  # one value for each step, however often it was made
    assert Checkpoints(killed / "checkpoints").steps() == [STEPS - 1, STEPS]
