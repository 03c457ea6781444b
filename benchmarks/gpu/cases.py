"""The sections of ``python -m benchmarks gpu`` that time layers and their kernels."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks import ceilings
from benchmarks.gpu.criteria import DECODE, MIXTRAL, OLMOE, QWEN, RECIPE, SONIC
from benchmarks.gpu.precompile import collect_autotuned, compile_calls, tune_quickly
from benchmarks.gpu.setting import Left, Setting
from benchmarks.peers import Peer, peers_named
from benchmarks.peers.base import first_line
from benchmarks.peers.ours import Moekit
from benchmarks.records import Record
from benchmarks.runner import CaseOptions, run_case
from benchmarks.shapes import DTYPES, PRESETS, Direction, Shape
from benchmarks.stages import run_kernel_stages
from benchmarks.workload import Workload
from moekit_kernels.targets import target_of

PASSES: tuple[Direction, ...] = ("forward", "forward+backward")
DENSE = ("dense", "dense-compiled")
OWN_PEERS = (*DENSE, "moekit-triton", "moekit-layer", "grouped_mm")
GRAPH_SLOTS = 512


def criteria(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields ceilings, then the workloads of the criteria with what PyTorch alone has."""
    yield from ceilings.measure(
        setting.device, DTYPES[setting.dtype], setting.dtype, setting.seconds, tiny=setting.tiny
    )
    yield from cases(setting, left, (RECIPE, DECODE, QWEN, MIXTRAL, OLMOE, SONIC), OWN_PEERS)


def library(name: str) -> Callable[[Setting, Left], Iterator[Record]]:
    """Returns the section of one other library, beside ours in the same process, on Qwen's workload."""

    def run(setting: Setting, left: Left) -> Iterator[Record]:
        yield from cases(setting, left, (QWEN,), ("moekit-triton", name))

    return run


def liger(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the case of liger, whose configurations are compiled side by side before they are tried."""
    yield from prepare_autotuned(setting, "liger", PRESETS[QWEN])
    yield from library("liger")(setting, left)


def prepare_autotuned(setting: Setting, name: str, shape: Shape) -> Iterator[Record]:
    """Compiles all configurations of an autotuned library for a workload; yields what came of it."""
    (peer,) = peers_named([name])
    if peer.absent(setting.draw(shape._replace(tokens=1, num_experts=shape.top_k))) is not None:
        return  # the case says why
    workload = setting.draw(shape)
    check = Record("check", f"{name}: configurations compiled side by side")
    try:
        with collect_autotuned() as calls:
            layer = peer.build(workload)
            x = workload.x.detach().requires_grad_()
            torch.autograd.grad(layer.forward(x), [x, *layer.leaves.values()], workload.grad)
        results = list(compile_calls(calls, target_of(setting.device), setting.workers))
        tune_quickly(calls)
    except Exception as error:  # of another library; it is compiled as it is tuned then, slowly
        yield check.because("absent", f"{type(error).__name__}: {first_line(error)}")
        return
    refused = sum(bool(one.error) for one in results)
    yield check.because("ok", f"{len(results)} configurations, {refused} of which do not compile")


def others(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the cases of the libraries that have no section of their own."""
    yield from cases(setting, left, (QWEN,), ("moekit-triton", "megablocks", "tutel", "transformers-grouped_mm"))


def kernels(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the time of every kernel on the workloads of the criteria."""
    peer = Moekit("triton")
    for preset in (QWEN, MIXTRAL, SONIC, RECIPE, OLMOE):
        workload = setting.draw(PRESETS[preset])
        base = Record(
            "stage", "kernels", preset=preset, shape=tuple(workload.shape), skew="uniform", dtype=setting.dtype
        )
        reason = peer.absent(workload) or (None if left() > 5 or setting.tiny else "no time was left")
        if reason is None and not workload.x.is_cuda:
            reason = "kernels are timed on a GPU only"
        if reason:
            yield base.because("absent", reason)
            continue
        yield from run_kernel_stages(base, workload, setting.seconds / 6)
        del workload


ODD = "qwen3-odd"
"""Qwen's workload with widths that no vector load fits."""

VARIANTS: dict[str, tuple[str, Shape, str, str]] = {
    "uniform bf16": (QWEN, PRESETS[QWEN], "uniform", "bf16"),
    "zipf": (QWEN, PRESETS[QWEN], "zipf", "bf16"),
    "fp16": (QWEN, PRESETS[QWEN], "uniform", "fp16"),
    "fp32, TF32 on": (QWEN, PRESETS[QWEN], "uniform", "fp32"),
    "odd widths": (ODD, PRESETS[QWEN]._replace(dim=2047, hidden_dim=767), "uniform", "bf16"),
}
"""What is to be no slower, relative to the dense network, than the first: preset, sizes, skew, dtype."""


def variants(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields our experts beside the dense networks in other dtypes, widths and routings, and with biases."""
    peers = peers_named([*DENSE, "moekit-triton"])
    for name, (preset, shape, skew, dtype) in VARIANTS.items():
        if reason := _no_time(setting, left, 6):
            yield Record("check", f"variant {name}", status="absent", reason=reason)
            continue
        workload = setting.draw(shape, skew, dtype if not setting.tiny else setting.dtype)
        row = [*peers, Moekit("triton", biases=True)] if name == "uniform bf16" else peers
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = dtype == "fp32"
        try:
            # With TF32 the results are right to TF32's rounding only, which the tolerance of float32 excludes.
            yield from _timed(setting, preset, workload, row, compare=dtype != "fp32")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        del workload


def breadth(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields our other modes and the other workloads, as far as time goes."""
    modes = ("moekit-triton", "moekit-triton-keep-hidden", "moekit-triton-keep-input", "moekit-torch")
    yield from cases(setting, left, (QWEN,), modes)
    decode = ("decode-qwen3-32", "decode-mixtral-1", "decode-mixtral-32", "medvlmoe-tiny")
    names = ("sonic-30b-256", "sonic-30b-1024", "sonic-1.4b-256", "sonic-1.4b-512", "sonic-1.4b-1024")
    yield from cases(setting, left, (*decode, *names, "deepseek-v3"), OWN_PEERS)


def cases(setting: Setting, left: Left, presets: Sequence[str], names: Sequence[str]) -> Iterator[Record]:
    """Yields workloads by peers, which take turns, until no time is left."""
    for preset in presets:
        if reason := _no_time(setting, left, 6):
            yield Record("check", f"case {preset}", status="absent", reason=reason)
            continue
        workload = setting.draw(PRESETS[preset])
        yield from _timed(setting, preset, workload, peers_named(list(names)))
        del workload


def _no_time(setting: Setting, left: Left, seconds: float) -> str | None:
    return "no time was left" if left() < seconds and not setting.tiny else None


def _timed(
    setting: Setting, preset: str, workload: Workload, peers: Sequence[Peer], compare: bool = True
) -> Iterator[Record]:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == workload.x.dtype)
    graphs = workload.shape.slots <= GRAPH_SLOTS
    options = CaseOptions(PASSES, setting.seconds, graphs=graphs, compare=compare, in_turn=True, least=setting.least)
    for record in run_case(preset, workload, dtype, peers, options):
        yield dataclasses.replace(record, remark=_remark(record, compare))


def _remark(record: Record, compared: bool) -> str:
    return record.remark if compared or record.role != "experts" else f"{record.remark}; not compared"
