"""Whether the kernels are right on the GPU at hand: large comparisons, equal bits of two runs, the compiled tests."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.check import agreement, disagreement, expected_of
from benchmarks.gpu.criteria import DIFFERENT_BITS, TESTS
from benchmarks.gpu.setting import Left, Setting
from benchmarks.peers.base import first_line
from benchmarks.peers.ours import Moekit
from benchmarks.records import Record
from benchmarks.shapes import DTYPES, PRESETS, Shape
from benchmarks.workload import Workload

ROOT = Path(__file__).parents[2]


class Comparison(NamedTuple):
    """One comparison with the reference.

    Attributes:
        shape: Its sizes.
        skew: How experts are chosen.
        dtype: Of tokens and weights.
        least_experts: Where it may run with fewer experts if memory is short, the fewest with which it still tests
            what it is for.
    """

    shape: Shape
    skew: str
    dtype: str
    least_experts: int | None = None


BEYOND_32_BITS = "up projection of more than 2^32 elements, bf16"

LARGE: dict[str, Comparison] = {
    "qwen3, T=4096, zipf, bf16": Comparison(Shape(4096, 2048, 768, 128, 8), "zipf", "bf16"),
    "mixtral, T=2048, bf16": Comparison(Shape(2048, 4096, 14336, 8, 2), "uniform", "bf16"),
    "odd sizes, fp16": Comparison(Shape(1003, 1001, 333, 7, 3), "zipf", "fp16"),
    "odd sizes, fp32 without TF32": Comparison(Shape(1003, 1001, 333, 7, 3), "zipf", "fp32"),
    "recipe, T=32, bf16": Comparison(PRESETS["medvlmoe-paper"], "uniform", "bf16"),
    "most experts without a token, bf16": Comparison(Shape(4096, 1024, 512, 512, 2), "zipf 3", "bf16"),
    "pre-activations of 2^32 elements, bf16": Comparison(Shape(131072, 512, 2048, 8, 8), "uniform", "bf16"),
    # 147 experts of 7168 x 4096 are the fewest with more than 2^32 elements.
    BEYOND_32_BITS: Comparison(Shape(2048, 7168, 2048, 256, 8), "zipf", "bf16", least_experts=147),
}
"""Comparisons with the reference at sizes that the tests do not reach."""

# Share of the memory that weights and their gradients may take; the rest is for tokens, rows and the allocator.
_WEIGHTS_SHARE = 0.85


def checks(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields comparisons of the experts with formulas in float32, and of the bits of two runs."""
    peer = Moekit("triton")
    for name, comparison in LARGE.items():
        if left() < 8:
            yield Record("check", name, status="absent", reason="no time was left")
            continue
        shape = setting.shape(comparison.shape)
        try:
            fitting = fitted(comparison._replace(shape=shape), setting.memory)
            if isinstance(fitting, str):
                yield Record("check", name, status="absent", reason=fitting)
                continue
            workload = setting.draw(fitting, comparison.skew, comparison.dtype)
            reason = peer.absent(workload)
            yield Record("check", name, status="absent", reason=reason) if reason else check(name, peer, workload)
            del workload
        except Exception as error:
            yield Record("check", name, status="failed", reason=f"{type(error).__name__}: {first_line(error)}")
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def fitted(comparison: Comparison, memory: int) -> Shape | str:
    """Returns the sizes with which a comparison fits ``memory`` bytes, or why it does not.

    At once there are the weights, their gradients of two runs, and the expected gradients in float32.
    """
    shape = comparison.shape
    bytes_of_expert = shape.weight_bytes(1, 3 * DTYPES[comparison.dtype].itemsize + 4)
    room = int(_WEIGHTS_SHARE * memory) // bytes_of_expert
    least = min(comparison.least_experts or shape.num_experts, shape.num_experts)
    if room >= least:
        return shape._replace(num_experts=min(room, shape.num_experts))
    needed = least * bytes_of_expert / _WEIGHTS_SHARE
    return f"needs more than {needed / 2**30:.0f} GiB, there are {memory / 2**30:.0f}"


def check(name: str, peer: Moekit, workload: Workload) -> Record:
    """Returns the comparison of output and all gradients of one workload."""
    layer = peer.build(workload)
    errors = agreement(layer, workload, expected_of(workload))
    worst = disagreement(errors, workload.x.dtype)
    x = workload.x.detach().requires_grad_()
    leaves = [x, *layer.leaves.values()]
    runs = []
    for _ in range(2):
        output = layer.forward(x)
        runs.append((output.detach(), *torch.autograd.grad(output, leaves, workload.grad)))
        del output
    same = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    reasons = [] if worst is None else [f"relative error {worst:.1e}"]
    reasons += [] if same else [DIFFERENT_BITS]
    status = "failed" if reasons else "ok"
    return Record("check", name, status=status, reason="; ".join(reasons), errors=errors, shape=tuple(workload.shape))


def tests(setting: Setting, left: Left) -> Iterator[Record]:
    """Yields the result of the compiled tests of the kernels; several processes where pytest-xdist is there.

    A rehearsal collects them only.
    """
    arguments = pytest_arguments(setting)
    command = [sys.executable, "-m", "pytest", "tests/triton", *arguments]
    seconds = max(left() - 3, 1)
    try:
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        last = (output.decode(errors="replace") if isinstance(output, bytes) else output).strip().splitlines()[-1:]
        reason = f"cut off after {seconds:.0f} s; last line: {' '.join(last)}"
        yield Record("check", TESTS, status="absent", reason=reason)
        return
    output = done.stdout.strip().splitlines()
    print("\n".join(output[-1 if setting.tiny else -40 :]), flush=True)
    reason = output[-1] if output else done.stderr.strip()[-200:]
    if setting.tiny and not done.returncode:
        yield Record("check", TESTS, status="absent", reason=f"rehearsal: {reason}")
        return
    yield Record("check", TESTS, status="failed" if done.returncode else "ok", reason=reason)


def pytest_arguments(setting: Setting) -> list[str]:
    """Returns the options of pytest.

    Where pytest-benchmark and xdist are both there, the former warns as pytest starts, and warnings are errors here:
    it is left out. Settings of plugins that are not installed are no reason to fail either.
    """
    several = ["-n", str(setting.workers)] if importlib.util.find_spec("xdist") and not setting.tiny else []
    quiet = ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    return ["-q", "--maxfail=20", *quiet, *several, *(["--collect-only"] if setting.tiny else [])]
