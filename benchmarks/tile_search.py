"""Which tiles to try, which of them cannot work, and the search for the fastest. Times nothing itself."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moekit_kernels.configs import KINDS, GemmConfig
from moekit_kernels.targets import Target

# Float32 accumulators that a thread may hold; the rest of its 255 registers is for addresses and the epilogue.
MOST_ACCUMULATORS = 160
# A new configuration must be better than the committed one by this much, or the committed one stays.
WORTH_IT = 0.02


class RejectedError(Exception):
    """A configuration that does not compile, does not fit or spills; the message names which."""


class Trial(NamedTuple):
    """One configuration that was tried.

    Attributes:
        config: The tile.
        score: Mean over workloads of its time relative to the committed configuration's; None if rejected.
        reason: Why it was rejected.
    """

    config: GemmConfig
    score: float | None
    reason: str = ""


def candidates(kind: str, least_rows: int) -> list[GemmConfig]:
    """Returns all tiles to consider for ``kind`` at ``least_rows`` rows per expert and more.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "few_rows":
        sizes = itertools.product((16, 32), (16, 32, 64, 128), (64, 128, 256), (1,), (2, 4, 8), (2, 3, 4, 5), (1, 2, 4))
    elif kind == "weight_grad":
        sizes = itertools.product((64, 128, 256), (64, 128, 256), (32, 64, 128), (4, 8), (4, 8), (3, 4, 5), (0, 1, 2))
    else:
        heights = (16, 32, 64) if least_rows < 24 else (64, 128) if least_rows < 96 else (64, 128, 256)
        sizes = itertools.product(heights, (64, 128, 256), (32, 64, 128), (4, 8), (4, 8), (2, 3, 4, 5), (1, 2))
    return [GemmConfig(*size) for size in sizes]


def impossible(config: GemmConfig, kind: str, itemsize: int, target: Target) -> str | None:
    """Returns why ``config`` cannot work on ``target``, by arithmetic alone; None if it may.

    The stages of both operands must fit the shared memory, for as many programs as a processor is to hold; and
    the accumulators must leave a thread registers for anything else.
    """
    columns = config.block_n * (2 if kind == "glu" else 1)
    stage = (config.block_m + columns) * config.block_k * itemsize
    # The compiler may keep one stage in registers or have consumed it when the last is loaded: a lower bound.
    shared = max(config.num_stages - 1, 1) * stage * max(config.per_processor, 1)
    if shared > target.shared_memory:
        return f"needs {shared} bytes of shared memory, {target.name} has {target.shared_memory}"
    accumulators = config.block_m * columns // (config.num_warps * target.warp_size)
    if accumulators > MOST_ACCUMULATORS:
        return f"would spill: {accumulators} accumulators a thread"
    return None


def distance(one: GemmConfig, other: GemmConfig) -> float:
    """Returns how many doublings lie between two tiles; a program for each tile lies one below one a processor."""
    return sum(abs(math.log2(max(a, 0.5) / max(b, 0.5))) for a, b in zip(one, other, strict=True))


def search(
    possible: Iterable[GemmConfig],
    current: GemmConfig,
    measure: Callable[[GemmConfig], Sequence[float]],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Trial]:
    """Tries tiles, the committed one first and then by their distance from it, until the time is over.

    Args:
        possible: What to try.
        current: The committed configuration.
        measure: Gives one time per workload, or raises :class:`RejectedError`.
        seconds: After which no new one is begun.
        clock: Seconds from any start.
    """
    end = clock() + seconds
    baseline = measure(current)
    trials = [Trial(current, 1.0)]
    for config in sorted(set(possible) - {current}, key=lambda config: (distance(config, current), config)):
        if clock() >= end:
            break
        try:
            times = measure(config)
        except RejectedError as error:
            trials.append(Trial(config, None, str(error)))
            continue
        ratios = [new / old for new, old in zip(times, baseline, strict=True)]
        trials.append(Trial(config, sum(ratios) / len(ratios)))
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """Returns the fastest trial if it beats the committed one, which comes first, by more than noise; else that one.

    Raises:
        ValueError: If nothing was tried.
    """
    if not trials:
        raise ValueError("trials must hold at least the committed configuration, got none.")
    measured = [trial for trial in trials if trial.score is not None]
    fastest = min(measured, key=lambda trial: trial.score or math.inf)
    return fastest if (fastest.score or math.inf) < 1 - WORTH_IT else trials[0]


def with_entry(table: Mapping[str, Any], target: str, kind: str, dtype: str, least: int, config: GemmConfig) -> Any:
    """Returns a copy of a table of configurations in which one entry is another; made if it was not there."""
    changed = {name: {k: dict(v) for k, v in kinds.items()} for name, kinds in table.items()}
    entries = dict(map(tuple, changed.setdefault(target, {}).setdefault(kind, {}).get(dtype, [])))
    entries[least] = list(config)
    changed[target][kind][dtype] = [[rows, entries[rows]] for rows in sorted(entries)]
    return changed


def as_json(table: Mapping[str, Any]) -> str:
    """Returns a table as ``configs.json`` is written: one line per class of dtypes."""
    import json

    targets = []
    for target, kinds in table.items():
        blocks = []
        for kind, dtypes in kinds.items():
            rows = ",\n".join(f'      "{dtype}": {json.dumps(entries)}' for dtype, entries in dtypes.items())
            blocks.append(f'    "{kind}": {{\n{rows}\n    }}')
        targets.append(f'  "{target}": {{\n' + ",\n".join(blocks) + "\n  }")
    return "{\n" + ",\n".join(targets) + "\n}\n"
