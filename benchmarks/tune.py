"""``python -m benchmarks tune --out FILE``: searches for better tiles on the GPU at hand.

What it writes is a table as ``moekit_kernels/configs.json``, to be used with ``moekit_kernels.configs.override`` or
to be committed. Tiles that do not fit the shared memory or that would spill are not tried; those that the compiler
makes spill are rejected. A new tile replaces the committed one only if it is faster by more than noise.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.options import OptionError, add_budget, add_dtype, add_out
from benchmarks.peers.base import first_line
from benchmarks.replay import replay
from benchmarks.shapes import DTYPES, PRESETS, Shape
from benchmarks.stages import kernel_calls
from benchmarks.tile_search import RejectedError, Trial, as_json, best, candidates, impossible, search, with_entry
from benchmarks.timing import time_steps
from benchmarks.workload import Workload, draw
from moekit_kernels import configs, runtime, targets
from moekit_kernels.configs import KINDS, GemmConfig

PASSES = {
    "forward": ("forward", "backward"),  # the down product, and the product that gives the gradient of x
    "glu": ("forward",),
    "activation": ("backward",),
    "weight_grad": ("backward",),
    "few_rows": ("forward", "backward"),
}
"""The passes in which a kind of kernel runs."""

WORKLOADS: dict[str, Shape] = {
    "qwen3": PRESETS["qwen3-30b-a3b"],
    "mixtral": PRESETS["mixtral"],
    "sonic": PRESETS["sonic-30b-512"],
    "qwen3, 64 rows an expert": PRESETS["qwen3-30b-a3b"]._replace(tokens=1024),
    "qwen3, 16 rows an expert": PRESETS["qwen3-30b-a3b"]._replace(tokens=256),
    "recipe": PRESETS["medvlmoe-paper"],
    "decode": PRESETS["decode-qwen3-32"],
    "decode, one token": PRESETS["decode-qwen3-1"],
}
"""What tiles are tuned for, each class of rows by those that fall into it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    add_dtype(parser, "bf16", ("bf16", "fp16", "fp32"))
    parser.add_argument(
        "--allow-spills",
        action="store_true",
        help="time tiles that spill, too; one that wins needs an exception",
    )
    add_budget(parser, 480.0)
    add_out(parser, "json file of configurations", required=True)


def in_class(shape: Shape, leasts: Sequence[int], least: int, few_rows: bool) -> bool:
    """Returns whether a workload falls into the class of ``least`` rows an expert, of all that begin at ``leasts``."""
    from moekit_kernels.moe_ffn import launches_few_rows

    rows = shape.slots // shape.num_experts
    own = max(one for one in leasts if rows >= one)
    return own == least and launches_few_rows.serves(shape.slots, shape.num_experts) == few_rows


def measure_on_gpu(
    kind: str, workloads: Sequence[Workload], target: targets.Target, dtype: str, allow_spills: bool
) -> Callable[[GemmConfig], list[float]]:
    """Returns a function that times the passes of ``kind`` with a configuration, in milliseconds per workload."""
    every = [kernel_calls(workload) for workload in workloads]
    passes = [[calls[name] for name in PASSES[kind]] for calls in every]
    device = workloads[0].x.device

    def measure(config: GemmConfig) -> list[float]:
        with configs.override({target.name: {kind: {dtype: [[0, list(config)]]}}}):
            return [sum(_time(call, config, device, allow_spills) for call in calls) for calls in passes]

    return measure


def _time(call: Callable[[], object], config: GemmConfig, device: torch.device, allow_spills: bool) -> float:
    with torch.no_grad(), runtime.record(targets.target_of(device)) as launches:
        outputs = call()
    step = replay(launches, lambda one: reject_bad_code(one, config, allow_spills))
    timing = time_steps([step], device, seconds=0.1, warm_up=1)
    del outputs
    return timing.median_ms


def reject_bad_code(one: runtime.Launch, config: GemmConfig, allow_spills: bool) -> None:
    """Runs a launch once; raises :class:`RejectedError` if it cannot, or if its tile is on trial and spills."""
    import triton

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int8, device="cuda")

    triton.set_allocator(allocate)
    try:
        compiled = one.kernel[one.grid](**one.arguments, num_warps=one.num_warps, num_stages=one.num_stages)
    except Exception as error:  # the compiler and the driver have many ways to refuse
        raise RejectedError(f"{type(error).__name__}: {first_line(error)}") from None
    spills = getattr(compiled, "n_spills", 0) or 0
    if spills and not allow_spills and is_on_trial(one, config):
        raise RejectedError(f"spills {spills} bytes")


def is_on_trial(one: runtime.Launch, config: GemmConfig) -> bool:
    """Returns whether a launch has the tile ``config``; or, for few rows, the narrower and deeper strip made of it."""
    blocks: list[int] = [one.arguments.get(name, 0) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    height, width, depth = blocks
    if height != config.block_m or (one.num_warps, one.num_stages) != (config.num_warps, config.num_stages):
        return False
    narrowed = "BLOCK_E" in one.arguments and width * depth == config.block_n * config.block_k
    return narrowed or (width, depth) == (config.block_n, config.block_k)


def _leasts(classes: Mapping[str, Any], dtype: str) -> list[int]:
    """Returns the least rows per expert of each tile of a kind; of exact float32 where it has none for TF32."""
    return [row[0] for row in classes[dtype if dtype in classes else "32-bit"]]


def tune(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Returns the table, and what each search ended with, a line for each kind and class."""
    device = torch.device("cuda")
    target = targets.target_of(device)
    itemsize = DTYPES[options.dtype].itemsize
    dtype = configs.operand_class(DTYPES[options.dtype])
    table: dict[str, Any] = {target.name: configs.committed()[target.name]}
    jobs = [(kind, _leasts(table[target.name][kind], dtype)) for kind in options.kind]
    jobs = [(kind, leasts, least) for kind, leasts in jobs for least in leasts]
    lines: list[str] = []
    for kind, leasts, least in tqdm(jobs, unit="class"):
        shapes = [s for s in WORKLOADS.values() if in_class(s, leasts, least, kind == "few_rows")]
        if not shapes:
            lines.append(f"{kind}, {least} rows and more: no workload, left as it is")
            continue
        workloads = [draw(shape, "uniform", device, DTYPES[options.dtype]) for shape in shapes]
        current = configs.gemm_config(kind, target, DTYPES[options.dtype], least)
        possible = [c for c in candidates(kind, least) if impossible(c, kind, itemsize, target) is None]
        measure = measure_on_gpu(kind, workloads, target, dtype, options.allow_spills)
        trials = search(possible, current, measure, options.budget / len(jobs))
        winner = best(trials)
        table = with_entry(table, target.name, kind, dtype, least, winner.config)
        lines.append(summary(kind, least, trials, winner, len(possible)))
        del workloads
    return table, lines


def summary(kind: str, least: int, trials: Sequence[Trial], winner: Trial, possible: int) -> str:
    """Returns how one search ended, as a line."""
    rejected = sum(trial.score is None for trial in trials)
    change = "the committed one stays" if winner == trials[0] else f"{winner.score:.3f} of the committed one's time"
    return (
        f"{kind}, {least} rows and more: {list(winner.config)}, {change}; "
        f"{len(trials)} tried of {possible + 1}, {rejected} rejected"
    )


def main(options: argparse.Namespace) -> int:
    """Searches and writes the table."""
    if not torch.cuda.is_available():
        raise OptionError("times kernels, so it needs a GPU; the committed table serves without one.")
    table, lines = tune(options)
    options.out.write_text(as_json(table))
    print("\n".join(lines))
    return 0
