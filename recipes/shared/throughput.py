"""How fast a training is: samples per second, time spent waiting for data, memory."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from recipes.shared.runs import peak_memory_bytes

_EVERY_SECONDS = 1.0


class Throughput:
    """Measures an epoch of one rank; samples are counted over all ranks, which have the same number.

    The loss is not among what the progress bar shows: to read it, the host would wait for the device.

    Args:
        bar: A progress bar of tqdm, or ``None``.
    """

    def __init__(self, bar: Any = None) -> None:
        self.bar = bar
        self.started = self.shown = time.monotonic()
        self.samples, self.waited = 0, 0.0
        self.world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    def count(self, samples: int) -> None:
        """Counts samples of this rank, and shows the figures about once a second."""
        self.samples += samples * self.world_size
        now = time.monotonic()
        if self.bar is not None and now - self.shown >= _EVERY_SECONDS:
            self.shown = now
            figures = self.figures()
            self.bar.set_postfix(
                {
                    "samples/s": f"{figures['samples_per_second']:.3g}",
                    "data wait": f"{figures['data_wait']:.0%}",
                    "memory": f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB",
                },
                refresh=False,
            )

    def figures(self) -> dict[str, Any]:
        """Returns samples per second, the share of the time spent waiting for data, and the most memory so far."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return {
            "samples_per_second": self.samples / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        }


def run_throughput(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns samples per second and the share of data wait over the epochs that recorded them, weighted by time.

    Args:
        history: Records of epochs; those of older versions have no such figures.
    """
    measured = [record for record in history if "samples_per_second" in record]
    seconds = sum(record["seconds"] for record in measured)
    if not seconds:
        return {"samples_per_second": None, "data_wait": None}
    return {
        name: sum(record[name] * record["seconds"] for record in measured) / seconds
        for name in ("samples_per_second", "data_wait")
    }
