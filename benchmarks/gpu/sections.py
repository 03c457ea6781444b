"""The sections of ``python -m benchmarks gpu``: each gives records until its work or its time is over."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks.curves import curves_within, points_on
from benchmarks.gpu import cases, checks, steps
from benchmarks.gpu.precompile import Compiled, calls_of, compile_calls
from benchmarks.gpu.setting import Left, Setting
from benchmarks.peers import peers_named
from benchmarks.records import Record
from benchmarks.shapes import DTYPES, PRESETS, Shape
from moekit_kernels.availability import interpreting
from moekit_kernels.targets import SM_90, target_of


class Section(NamedTuple):
    """A part of the command.

    Attributes:
        summary: What it measures, in a line.
        least: Seconds below which it is not begun.
        most: Seconds after which it is cut off.
        run: Gives its records.
        by_default: Whether it runs when no section is named.
    """

    summary: str
    least: float
    most: float
    run: Callable[[Setting, Left], Iterator[Record]]
    by_default: bool = True


COMPILED_PRESETS = (
    "qwen3-30b-a3b",
    "mixtral",
    "olmoe",
    "sonic-30b-512",
    "medvlmoe-paper",
    "decode-qwen3-1",
    "step-4096",
    "step-16384",
)
"""Whose kernels are compiled before anything is timed, beside those of the comparisons and the curves."""


def compiled_shapes() -> list[tuple[Shape, str]]:
    """Returns sizes and dtypes of what the sections run by default."""
    compared = [(one.shape, one.dtype) for one in checks.LARGE.values()]
    others = [(shape, dtype) for _, shape, _, dtype in cases.VARIANTS.values()]
    return list(dict.fromkeys([*((PRESETS[name], "bf16") for name in COMPILED_PRESETS), *compared, *others]))


def compile_first(setting: Setting, left: Left) -> Iterator[Record]:
    """Compiles the kernels of the other sections in several processes, and the dense network's activation meanwhile."""
    yield compile_layers(setting, "kernels compiled side by side", compiled_shapes(), compile_dense)


def compile_layers(
    setting: Setting,
    name: str,
    layers: Sequence[tuple[Shape, str]],
    meanwhile: Callable[[Setting], object] = lambda setting: None,
) -> Record:
    """Compiles the kernels of layers, of sizes and dtypes; a rehearsal compiles those of one layer."""
    check = Record("check", name)
    if interpreting():
        return check.because("absent", "the kernels are interpreted")
    if setting.tiny:
        layers = [(PRESETS["medvlmoe-tiny"], "fp16")]
    target = SM_90 if setting.tiny else target_of(setting.device)
    start = time.monotonic()
    results: list[Compiled] = []
    calls = calls_of([(shape, DTYPES[dtype]) for shape, dtype in layers], target)
    for one in compile_calls(calls, target, setting.workers):
        if not results and not setting.tiny:
            meanwhile(setting)  # in this process, while the others go on
        results.append(one)
    refused = [f"{one.kernel}: {one.error}" for one in results if one.error]
    seconds, work = time.monotonic() - start, sum(one.seconds for one in results)
    numbers = f"{len(results)} in {seconds:.0f} s by {setting.workers} processes; one would take {work:.0f} s"
    return check.because("failed" if refused else "ok", "; ".join(refused[:3]) or numbers)


def compile_dense(setting: Setting) -> None:
    """Runs the dense network with a compiled activation once, which fills inductor's cache on disk."""
    workload = setting.draw(PRESETS["medvlmoe-paper"])
    (peer,) = peers_named(["dense-compiled"])
    layer = peer.build(workload)
    x = workload.x.detach().requires_grad_()
    torch.autograd.grad(layer.forward(x), [x, *layer.leaves.values()], workload.grad)


def curves(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the points of the curves: ours beside dense and grouped_mm, then liger's, which tunes itself long."""
    layers = [(point.shape, setting.dtype) for point in points_on(setting.device, setting.tiny)]
    if not setting.tiny:
        yield compile_layers(setting, "kernels of the curves compiled side by side", layers)
    seconds = setting.seconds / 6
    own = peers_named(["dense", "dense-compiled", "moekit-triton", "grouped_mm"])
    yield from curves_within(setting.device, setting.dtype, own, seconds, left, setting.tiny)
    yield from cases.prepare_autotuned(setting, "liger", PRESETS["olmoe"])
    yield from curves_within(setting.device, setting.dtype, peers_named(["liger"]), seconds, left, setting.tiny)


SECTIONS: dict[str, Section] = {
    "compile": Section("compiles the kernels of the sections side by side", 10, 60, compile_first),
    "checks": Section("large comparisons with formulas, and the bits of two runs", 15, 50, checks.checks),
    "criteria": Section("the workloads of the criteria, with what PyTorch alone has", 25, 110, cases.criteria),
    "steps": Section("wall time of eager steps of whole layers", 10, 30, steps.steps),
    "tests": Section("the compiled tests of tests/triton", 25, 180, checks.tests),
    "kernels": Section("each kernel alone on the workloads of the criteria", 10, 30, cases.kernels),
    "variants": Section("Zipf routing, fp16, fp32, odd widths, biases", 10, 60, cases.variants),
    "scattermoe": Section("ScatterMoE on Qwen3's workload", 8, 30, cases.library("scattermoe")),
    "liger": Section("liger-kernel on Qwen3's workload, autotuned", 20, 80, cases.liger),
    "libraries": Section("MegaBlocks, Tutel and transformers on Qwen3's workload", 8, 40, cases.others),
    "sonicmoe": Section("SonicMoE on Qwen3's workload", 8, 240, cases.library("sonicmoe")),
    "curves": Section("how cost grows with tokens, experts, top-k and skew", 20, 240, curves, by_default=False),
    "breadth": Section("our other modes, decoding, and more published sizes", 15, 200, cases.breadth, by_default=False),
}
"""In the order in which they run."""
