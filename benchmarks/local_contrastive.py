"""``python -m benchmarks local-contrastive``: memory and time of the local contrastive loss, forward and backward.

Four ways to the same loss and gradients, each in a process of its own: all texts at once; one text after another, as
GLoRIA's code is written; a few texts at a time with ``torch.utils.checkpoint``; and ``local_contrastive_loss``. First
they are compared at a small size, in float64.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from benchmarks.environment import environment
from benchmarks.memory import peaks, resident_peak
from benchmarks.options import add_device, add_dtype, add_out, add_seconds
from benchmarks.records import Record, write
from benchmarks.shapes import DTYPES
from benchmarks.timing import Step, Timing, time_steps
from moekit import local_contrastive_loss

OURS, NAIVE = "moekit", "all-at-once"
TEMPERATURES = (4.0, 5.0, 10.0)
MOST = 0.25
"""Peak memory relative to all texts at once, at most."""
TOLERANCE = 1e-10
CHECKPOINTED_TEXTS = 4  # what local_scores takes at the default sizes


class Sizes(NamedTuple):
    """B, N, M, D."""

    batch: int = 64
    words: int = 25
    regions: int = 784
    dim: int = 768

    def __str__(self) -> str:
        return f"B={self.batch} N={self.words} M={self.regions} D={self.dim}"


Inputs = tuple[Tensor, Tensor, Tensor]


def draw(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Draws regions, words and mask of reports of different lengths."""
    generator = torch.Generator(device).manual_seed(0)

    def features(*shape: int) -> Tensor:
        drawn = torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)
        return drawn.mul_(sizes.dim**-0.25).requires_grad_()  # logits of about one

    regions = features(sizes.batch, sizes.regions, sizes.dim)
    words = features(sizes.batch, sizes.words, sizes.dim)
    lengths = torch.arange(sizes.batch, device=device) % sizes.words + 1
    return regions, words, torch.arange(sizes.words, device=device) < lengths.unsqueeze(1)


def plain_scores(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Scores (B, T) by the formulas, all at once."""
    real = mask.unsqueeze(2)
    words = torch.where(real, words, 0.0)
    logits = torch.einsum("tnd,bmd->btnm", words, regions)
    attention = logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(dim=2)
    attention = (TEMPERATURES[0] * attention).softmax(dim=3)
    contexts = torch.einsum("btnm,bmd->btnd", attention, regions)
    cosines = F.cosine_similarity(contexts, words.unsqueeze(0), dim=3)
    exponents = (TEMPERATURES[1] * cosines).masked_fill(~mask, -torch.inf)
    return exponents.logsumexp(dim=2) - mask.sum(dim=1).to(exponents.dtype).log()


def in_parts(
    size: int, scores: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Scores of ``size`` texts at a time."""

    def parts(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        pairs = zip(words.split(size), mask.split(size), strict=True)
        return torch.cat([scores(regions, some, real) for some, real in pairs], dim=1)

    return parts


def checkpointed(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """As ``plain_scores``, computed again in backward."""
    scores = checkpoint(plain_scores, regions, words, mask, use_reentrant=False)
    assert isinstance(scores, Tensor)
    return scores


FORMS: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor] | None]] = {
    NAIVE: ("plain autograd", plain_scores),
    "one-by-one": ("plain autograd, one text after another, as GLoRIA's code", in_parts(1, plain_scores)),
    "checkpoint": (
        f"torch.utils.checkpoint, {CHECKPOINTED_TEXTS} texts at a time",
        in_parts(CHECKPOINTED_TEXTS, checkpointed),
    ),
    OURS: ("local_contrastive_loss with its defaults", None),
}


def loss_of(form: str, inputs: Inputs) -> Tensor:
    """Returns the loss of both directions, in one of the forms."""
    scores = FORMS[form][1]
    if scores is None:
        return local_contrastive_loss(*inputs, temperatures=TEMPERATURES).loss
    logits = TEMPERATURES[2] * scores(*inputs)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def gradients(loss: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Returns the gradients of regions and words."""
    return torch.autograd.grad(loss, inputs[:2])


def check(form: str, device: torch.device) -> Record:
    """Returns the relative errors of loss and gradients at a small size, in float64, against all texts at once."""
    inputs = draw(Sizes(7, 5, 11, 6), device, torch.float64)
    losses = [loss_of(name, inputs) for name in (form, NAIVE)]
    pairs = zip(*((loss.detach(), *gradients(loss, inputs)) for loss in losses), strict=True)
    errors = dict(zip(("loss", "regions", "words"), (float((a - b).norm() / b.norm()) for a, b in pairs), strict=True))
    status = "ok" if max(errors.values()) <= TOLERANCE else "failed"
    return Record("check", f"{form} against {NAIVE}, small, fp64", status=status, errors=errors)


def measure(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns the peak memory of one step above the inputs, and its times; to be called in a process of its own."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    small = draw(Sizes(2, 2, 2, 2), device, dtype)
    gradients(loss_of(form, small), small)  # libraries load with the first step
    inputs = draw(sizes_of(options), device, dtype)

    def step(_: object) -> object:
        return gradients(loss_of(form, inputs), inputs)

    if device.type == "cuda":
        peak = peaks(lambda: loss_of(form, inputs), lambda loss: gradients(loss, inputs), device).step
    else:
        peak = resident_peak(lambda: step(None))
    timing = time_steps([Step(step)], device, seconds=options.seconds, least=3)
    return {"peak": peak, **timing._asdict()}


def run(options: argparse.Namespace) -> list[Record]:
    """Returns all records of the command: checks, cases, the verdict."""
    about = environment(torch.device(options.device))
    records = [check(form, torch.device(options.device)) for form in FORMS if form != NAIVE]
    base = Record("case", "", preset=str(sizes_of(options)), dtype=options.dtype, direction="forward+backward")
    for form, (remark, _) in tqdm(FORMS.items(), unit="form"):
        case = dataclasses.replace(base, name=form, remark=remark)
        records.append(_in_a_process(case, options))
    records.append(verdict(records))
    return [dataclasses.replace(record, environment=about) for record in records]


def _in_a_process(case: Record, options: argparse.Namespace) -> Record:
    arguments = [f"--{name}={getattr(options, name)}" for name in (*Sizes._fields, "device", "dtype", "seconds")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "local-contrastive", f"--form={case.name}", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()  # empty if it was killed for memory
        return case.because("failed", lines[-1] if lines else f"status {done.returncode}")
    values = json.loads(done.stdout.splitlines()[-1])
    case = dataclasses.replace(case, peak_step_bytes=values.pop("peak"))
    return case.timed(Timing(**values))


def verdict(records: list[Record]) -> Record:
    """Returns whether our peak is at most a quarter of that of all texts at once."""
    peak = {record.name: record.peak_step_bytes for record in records if record.kind == "case"}
    name = f"local contrastive loss: peak memory at most {MOST} of all texts at once"
    preset = next(record.preset for record in records if record.kind == "case")
    ours, naive = peak.get(OURS), peak.get(NAIVE)
    if ours is None or naive is None:
        return Record("criterion", name, status="unmeasured", preset=preset, reason="a form failed")
    if naive == 0:
        reason = "too small to raise the peak of the process: choose larger sizes"
        return Record("criterion", name, status="unmeasured", preset=preset, reason=reason)
    reason = f"x{ours / naive:.3f}: {ours / 2**20:.0f} MiB against {naive / 2**20:.0f} MiB, {preset}"
    return Record("criterion", name, status="met" if ours <= MOST * naive else "missed", preset=preset, reason=reason)


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Returns the sizes among the options."""
    return Sizes(*(getattr(options, name) for name in Sizes._fields))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    for name, default in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    add_device(parser)
    add_dtype(parser, "fp32")
    add_seconds(parser, 5.0)
    add_out(parser, "file of records, written anew")
    parser.add_argument("--form", choices=list(FORMS), help=argparse.SUPPRESS)  # measured in this process, to json


def line(record: Record) -> str:
    """Returns a record as a line of the terminal."""
    if record.kind == "check":
        errors = ", ".join(f"{name} {error:.1e}" for name, error in record.errors.items())
        return f"{record.name}: {record.status} ({errors})"
    if record.kind == "criterion" or record.peak_step_bytes is None:
        return f"{record.name}: {record.status}, {record.reason}"
    return (
        f"{record.name:14} peak {record.peak_step_bytes / 2**20:8.0f} MiB, {record.median_ms:9.1f} ms "
        f"({record.p20_ms:.1f} to {record.p80_ms:.1f}), {record.remark}"
    )


def main(options: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    if options.form is not None:
        print(json.dumps(measure(options.form, options)))
        return 0
    records = run(options)
    for record in records:
        print(line(record))
    if options.out is not None:
        write(options.out, records)
    return 0
