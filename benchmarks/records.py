"""Records of measurements: one line of json each."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.shapes import Shape
from benchmarks.timing import Timing

Kind = Literal["case", "stage", "ceiling", "check", "criterion", "curve"]
Status = Literal["ok", "absent", "failed", "met", "missed", "unmeasured"]


@dataclass(frozen=True)
class Record:
    """One measurement, or the reason why there is none.

    Attributes:
        kind: A ``case`` is a layer in one direction, a ``stage`` a part of ours, a ``ceiling`` what the device can
            do, a ``check`` a comparison of numbers, a ``criterion`` a verdict, a ``curve`` one point of how the cost of
            a layer grows.
        name: Of the peer, stage, ceiling, check or criterion.
        status: Whether it was measured; for a criterion, the verdict.
        environment: Of :func:`benchmarks.environment.environment`.
        preset: Name of the workload.
        shape: T, D, F, E, K.
        skew: How experts are chosen.
        dtype: ``bf16``, ``fp16``, ``fp32``, ``fp64``.
        direction: forward, backward, or forward+backward.
        role: Of the peer.
        remark: What it is.
        section: Of ``python -m benchmarks gpu``: what was measured in one process, so that ratios are of one run.
        source: Where the figures are from, if the benchmarks did not write the record themselves.
        reason: Why it is absent or failed; for a verdict, the numbers.
        median_ms: Milliseconds, with ``p20_ms`` and ``p80_ms`` over ``repeats``.
        graph: Whether a CUDA graph was replayed.
        flops: Operations, where they were counted.
        tflops: 10^12 operations a second.
        gbps: 10^9 bytes a second, counting the bytes at least moved.
        of_dense: Speed relative to the fastest dense network of as many operations.
        of_matmul: ``tflops`` relative to a large product measured in the same run.
        of_copy: ``gbps`` relative to a copy measured in the same run.
        errors: Relative errors of output and gradients.
        disagrees: The worst of them if it is beyond rounding.
        saved_bytes: What autograd keeps for backward, inputs and parameters not counted.
        saved_input_bytes: What it keeps of the inputs.
        kept_bytes: What the allocator holds after forward beyond inputs and output (GPU).
        peak_forward_bytes: The allocator's peak in forward, above what was there before (GPU).
        peak_step_bytes: The same over forward and backward, gradients of the weights included (GPU); on CPU, where
            a process of its own measured it, its resident memory.
    """

    kind: Kind
    name: str
    status: Status = "ok"
    environment: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    shape: tuple[int, ...] = ()
    skew: str = ""
    dtype: str = ""
    direction: str = ""
    role: str = ""
    remark: str = ""
    section: str = ""
    source: str = ""
    reason: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    repeats: int | None = None
    graph: bool = False
    flops: int | None = None
    tflops: float | None = None
    gbps: float | None = None
    of_dense: float | None = None
    of_matmul: float | None = None
    of_copy: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    disagrees: float | None = None
    saved_bytes: int | None = None
    saved_input_bytes: int | None = None
    kept_bytes: int | None = None
    peak_forward_bytes: int | None = None
    peak_step_bytes: int | None = None

    def key(self) -> tuple[object, ...]:
        """Returns what is the same in two runs of one case."""
        return (self.kind, self.name, self.preset, self.shape, self.skew, self.dtype, self.direction, self.section)

    def workload(self) -> str:
        """Returns the workload in words."""
        return f"{self.preset} ({Shape(*self.shape)}), {self.skew}, {self.dtype}" if self.shape else self.preset

    def because(self, status: Status, reason: str) -> "Record":
        """Returns the record of what was not measured."""
        return dataclasses.replace(self, status=status, reason=reason)

    def timed(self, timing: Timing, flops: int | None = None, least_bytes: int | None = None) -> "Record":
        """Returns the record with times, and rates if operations and bytes are given."""
        seconds = timing.median_ms / 1e3
        return dataclasses.replace(
            self,
            **timing._asdict(),
            tflops=None if flops is None else flops / seconds / 1e12,
            gbps=None if least_bytes is None else least_bytes / seconds / 1e9,
        )


def to_line(record: Record) -> str:
    """Returns the record as json, without what is empty."""
    values = {
        name: value for name, value in dataclasses.asdict(record).items() if value not in (None, "", (), {}, False)
    }
    return json.dumps(values)


def from_line(line: str) -> Record:
    """Returns the record of a line.

    Raises:
        ValueError: If the line is no record.
    """
    try:
        values = json.loads(line)
        values["shape"] = tuple(values.get("shape", ()))
        return Record(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"line must be a record as benchmarks.records writes it, got {line[:80]!r}: {error}") from None


def read(path: Path) -> list[Record]:
    """Returns all records of a file.

    Raises:
        ValueError: If a line is no record.
    """
    return [from_line(line) for line in path.read_text().splitlines() if line.strip()]


def write(path: Path, records: Iterable[Record], append: bool = False) -> None:
    """Writes records, one a line; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.writelines(to_line(record) + "\n" for record in records)
