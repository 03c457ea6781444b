"""The sections of ``python -m benchmarks gpu``: each gives records until its work or its time is over."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import ceilings
from benchmarks.check import agreement, disagreement, expected_of
from benchmarks.criteria import MIXTRAL, QWEN, RECIPE, SONIC
from benchmarks.environment import environment
from benchmarks.peers import peers_named
from benchmarks.peers.base import first_line
from benchmarks.peers.ours import Moekit
from benchmarks.records import Record
from benchmarks.runner import CaseOptions, run_case
from benchmarks.shapes import DTYPES, PRESETS, Direction, Shape
from benchmarks.stages import run_kernel_stages
from benchmarks.workload import Skew, Workload, draw

Left = Callable[[], float]
"""Seconds left."""

ROOT = Path(__file__).parents[1]
PASSES: tuple[Direction, ...] = ("forward", "forward+backward")
OWN_PEERS = ("dense", "dense-compiled", "moekit-triton", "grouped_mm")
LIBRARIES = ("scattermoe", "liger", "sonicmoe", "megablocks", "tutel", "transformers-grouped_mm")


def require_gpu() -> None:
    """Raises ``SystemExit`` where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks gpu needs a GPU; --rehearsal tries the command on CPU.")


class Setting(NamedTuple):
    """Where and how large.

    Attributes:
        device: Of all tensors.
        tiny: Whether sizes are cut down for a rehearsal.
        dtype: Of the cases.
        seconds: About how long each pass is repeated.
        about: Environment of the records.
        memory: Bytes that tensors may take.
    """

    device: torch.device
    tiny: bool
    dtype: str
    seconds: float
    about: dict[str, Any]
    memory: int

    @staticmethod
    def real() -> "Setting":
        """Returns the setting of the GPU at hand.

        Raises:
            SystemExit: If there is none.
        """
        require_gpu()
        device = torch.device("cuda")
        memory = torch.cuda.get_device_properties(device).total_memory
        return Setting(device, False, "bf16", 0.4, environment(device), memory)

    @staticmethod
    def rehearsal() -> "Setting":
        """Returns the setting of a rehearsal: tiny workloads on CPU."""
        device = torch.device("cpu")
        return Setting(device, True, "fp32", 0.001, environment(device), 1 << 30)

    def shape(self, shape: Shape) -> Shape:
        """Returns the sizes that ``shape`` has in this setting."""
        if not self.tiny:
            return shape
        return Shape(min(shape.tokens, 24), 32, 16, min(shape.num_experts, 4), min(shape.top_k, 2))

    def draw(self, shape: Shape, skew: Skew = "uniform", dtype: str | None = None) -> Workload:
        """Returns a workload of this setting."""
        return draw(self.shape(shape), skew, self.device, DTYPES[dtype or self.dtype])


class Section(NamedTuple):
    """A part of the command.

    Attributes:
        least: Seconds below which it is not begun.
        most: Seconds after which it is cut off.
        run: Gives its records.
    """

    least: float
    most: float
    run: Callable[[Setting, Left], Iterator[Record]]


LARGE: dict[str, tuple[Shape, Skew, str]] = {
    "qwen3, T=4096, zipf, bf16": (Shape(4096, 2048, 768, 128, 8), "zipf", "bf16"),
    "mixtral, T=2048, bf16": (Shape(2048, 4096, 14336, 8, 2), "uniform", "bf16"),
    "odd sizes, fp16": (Shape(1003, 1001, 333, 7, 3), "zipf", "fp16"),
    "odd sizes, fp32 without TF32": (Shape(1003, 1001, 333, 7, 3), "zipf", "fp32"),
    "recipe, T=32, bf16": (PRESETS[RECIPE], "uniform", "bf16"),
    "pre-activations of 2^32 elements, bf16": (Shape(131072, 512, 2048, 8, 8), "uniform", "bf16"),
    "weights of 2^32.8 elements, bf16": (Shape(2048, 7168, 2048, 256, 8), "zipf", "bf16"),
}
"""Comparisons with the reference at sizes that the tests do not reach."""


def checks(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields comparisons of the layer with formulas in float32, and of the bits of two runs."""
    peer = Moekit("triton")
    for name, (shape, skew, dtype) in LARGE.items():
        if left() < 10:
            yield Record("check", name, status="absent", reason="no time was left")
            continue
        try:
            if reason := too_large(setting.shape(shape), DTYPES[dtype].itemsize, setting.memory):
                yield Record("check", name, status="absent", reason=reason)
                continue
            workload = setting.draw(shape, skew, dtype)
            reason = peer.absent(workload)
            yield Record("check", name, status="absent", reason=reason) if reason else check(name, peer, workload)
            del workload
        except Exception as error:
            yield Record("check", name, status="failed", reason=f"{type(error).__name__}: {first_line(error)}")
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def too_large(shape: Shape, itemsize: int, memory: int) -> str | None:
    """Returns why a comparison does not fit ``memory`` bytes; None if it may.

    At once there are the weights, their gradients of two runs, and the expected gradients in float32.
    """
    needed = shape.weight_bytes(shape.num_experts, 3 * itemsize + 4)
    if needed <= memory:
        return None
    return f"needs more than {needed / 2**30:.0f} GiB, there are {memory / 2**30:.0f}"


def check(name: str, peer: Moekit, workload: Workload) -> Record:
    """Returns the comparison of output and all gradients of one workload."""
    layer = peer.build(workload)
    errors = agreement(layer, workload, expected_of(workload))
    worst = disagreement(errors, workload.x.dtype)
    x = workload.x.detach().requires_grad_()
    leaves = [x, *layer.leaves.values()]
    runs = [torch.autograd.grad(layer.forward(x), leaves, workload.grad) for _ in range(2)]
    same = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    reasons = [] if worst is None else [f"relative error {worst:.1e}"]
    reasons += [] if same else ["two runs gave different bits"]
    return Record("check", name, status="failed" if reasons else "ok", reason="; ".join(reasons), errors=errors)


def criteria_cases(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields ceilings, then the workloads of the criteria with what PyTorch alone has."""
    yield from ceilings.measure(
        setting.device, DTYPES[setting.dtype], setting.dtype, setting.seconds, tiny=setting.tiny
    )
    yield from cases(setting, left, (RECIPE, QWEN, MIXTRAL, SONIC), OWN_PEERS)


def library_cases(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the cases of the other libraries, on Qwen's workload."""
    yield from cases(setting, left, (QWEN,), LIBRARIES)


def breadth(setting: Setting, left: Left) -> Iterator[Record]:
    """Zipf's routing, our other modes, and the other workloads, as far as time goes."""
    yield from cases(setting, left, (QWEN,), OWN_PEERS, "zipf")
    yield from cases(setting, left, (QWEN,), ("moekit-triton-keep-hidden", "moekit-triton-keep-input", "moekit-torch"))
    names = ("sonic-1.4b-256", "olmoe", "sonic-30b-256", "sonic-30b-1024", "sonic-1.4b-512", "sonic-1.4b-1024")
    decode = ("decode-qwen3-1", "decode-qwen3-32", "decode-mixtral-1", "decode-mixtral-32", "medvlmoe-tiny")
    yield from cases(setting, left, (*decode, *names, "deepseek-v3"), OWN_PEERS)


def cases(
    setting: Setting, left: Left, presets: Sequence[str], names: Sequence[str], skew: Skew = "uniform"
) -> Iterator[Record]:
    """Workloads by peers, until no time is left."""
    for preset in presets:
        if left() < 15 and not setting.tiny:
            yield Record("check", f"case {preset}", status="absent", reason="no time was left")
            continue
        workload = setting.draw(PRESETS[preset], skew)
        case_options = CaseOptions(PASSES, setting.seconds, graphs=workload.shape.slots <= 512)
        yield from run_case(preset, workload, setting.dtype, peers_named(list(names)), case_options)
        del workload


def kernels(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the time of every kernel on the workloads of the criteria."""
    peer = Moekit("triton")
    for preset in (QWEN, RECIPE, MIXTRAL, SONIC):
        workload = setting.draw(PRESETS[preset])
        base = Record(
            "stage", "kernels", preset=preset, shape=tuple(workload.shape), skew="uniform", dtype=setting.dtype
        )
        reason = peer.absent(workload) or (None if left() > 5 or setting.tiny else "no time was left")
        if reason:
            yield base.because("absent", reason)
            continue
        yield from run_kernel_stages(base, workload, setting.seconds / 4)
        del workload


def tests(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the result of the compiled tests of the kernels; several processes where pytest-xdist is there."""
    name = "tests/triton, compiled"
    if setting.tiny:
        yield Record("check", name, status="absent", reason="rehearsal")
        return
    several = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    # Settings of plugins that are not installed are no reason to fail.
    quiet = ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "tests/triton", "-x", "-q", *quiet, *several]
    seconds = max(left() - 5, 1)
    try:
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        last = (output.decode(errors="replace") if isinstance(output, bytes) else output).strip().splitlines()[-1:]
        yield Record("check", name, status="absent", reason=f"cut off after {seconds:.0f} s; last line: {last}")
        return
    output = done.stdout.strip().splitlines()
    print("\n".join(output[-40:]), flush=True)
    reason = output[-1] if output else done.stderr.strip()[-200:]
    yield Record("check", name, status="failed" if done.returncode else "ok", reason=reason)


SECTIONS: dict[str, Section] = {
    "checks": Section(20, 110, checks),
    "criteria": Section(30, 140, criteria_cases),
    "libraries": Section(15, 90, library_cases),
    "kernels": Section(15, 60, kernels),
    "tests": Section(30, 150, tests),
    "breadth": Section(20, 200, breadth),
}
"""In the order in which they run."""
