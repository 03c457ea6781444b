"""What the fused kernels are to reach, judged from records of one run on a GPU.

| what | at least (at most) |
|---|---|
| Qwen3-30B-A3B, forward and backward in bf16, against ``F.grouped_mm`` | 1.6 times as fast |
| the same against the faster of ScatterMoE and liger's fused MoE | 1.5 times as fast |
| the same against the dense network of as many operations | 0.60 of its speed |
| Mixtral, T=8192 | 0.80 of it |
| SonicMoE's (F, E, K) = (512, 128, 8) at D=4096 | 0.65 of it |
| what a layer keeps for backward, its input included, against ``2TD + 4TKF`` bytes | at most 1.15 times |
| T=32 D=1024 F=4096 E=8 K=2, forward, against one read of the weights at the speed of a copy | at most 1.5 times |
"""

import dataclasses
from collections.abc import Sequence

from benchmarks.ceilings import ceilings_of
from benchmarks.records import Record, Status
from benchmarks.shapes import DTYPES, PRESETS, Shape

OURS = "moekit-triton"
QWEN, MIXTRAL, SONIC, RECIPE = "qwen3-30b-a3b", "mixtral", "sonic-30b-512", "medvlmoe-paper"
STEP = "forward+backward"


def judge(records: Sequence[Record], dtype: str = "bf16") -> list[Record]:
    """Returns one record per criterion: met, missed or unmeasured, with the numbers."""
    return [
        _times_as_fast(records, ("grouped_mm",), 1.6, dtype),
        _times_as_fast(records, ("scattermoe", "liger"), 1.5, dtype),
        _of_dense(records, QWEN, 0.60, dtype),
        _of_dense(records, MIXTRAL, 0.80, dtype),
        _of_dense(records, SONIC, 0.65, dtype),
        _kept(records, 1.15, dtype),
        _weights_once(records, 1.5, dtype),
    ]


def _find(records: Sequence[Record], name: str, preset: str, direction: str, dtype: str) -> Record | None:
    case = Record("case", name, preset=preset, shape=tuple(PRESETS[preset]), skew="uniform", dtype=dtype)
    key = dataclasses.replace(case, direction=direction).key()
    return next((record for record in records if record.key() == key), None)


def _verdict(name: str, met: bool | None, reason: str, ours: Record | None = None) -> Record:
    status: Status = "unmeasured" if met is None else "met" if met else "missed"
    if met is not None and ours is not None and ours.disagrees is not None:
        status, reason = "missed", f"{reason}; but {OURS} disagrees with the reference by {ours.disagrees:.1e}"
    return Record("criterion", name, status=status, reason=reason, preset="" if ours is None else ours.preset)


def _why_not(records: Sequence[Record], name: str, preset: str) -> str:
    for record in records:
        if (record.kind, record.name, record.preset) == ("case", name, preset) and record.reason:
            return f"{name}: {record.reason}"
    return f"{name} was not run on {preset} at its own size"


def _times_as_fast(records: Sequence[Record], peers: Sequence[str], least: float, dtype: str) -> Record:
    title = f"{QWEN}, {STEP}: at least {least} times as fast as {' and '.join(peers)}"
    ours = _find(records, OURS, QWEN, STEP, dtype)
    if ours is None or ours.median_ms is None:
        return _verdict(title, None, _why_not(records, OURS, QWEN))
    times: dict[str, float] = {}
    for peer in peers:
        record = _find(records, peer, QWEN, STEP, dtype)
        if record is not None and record.median_ms is not None:
            times[peer] = record.median_ms
    if not times:
        return _verdict(title, None, "; ".join(_why_not(records, peer, QWEN) for peer in peers))
    ratios = {peer: time / ours.median_ms for peer, time in times.items()}
    numbers = ", ".join(f"x{ratio:.2f} against {peer} ({times[peer]:.4g} ms)" for peer, ratio in ratios.items())
    return _verdict(title, min(ratios.values()) >= least, f"{ours.median_ms:.4g} ms; {numbers}", ours)


def _of_dense(records: Sequence[Record], preset: str, least: float, dtype: str) -> Record:
    title = f"{preset}, {STEP}: at least {least:.2f} of the dense ceiling"
    ours = _find(records, OURS, preset, STEP, dtype)
    if ours is None or ours.median_ms is None:
        return _verdict(title, None, _why_not(records, OURS, preset))
    if ours.of_dense is None:
        return _verdict(title, None, _why_not(records, "dense", preset))
    numbers = f"{ours.of_dense:.3f} of dense: {ours.median_ms:.4g} ms, {ours.tflops:.4g} TFLOP/s"
    return _verdict(title, ours.of_dense >= least, numbers, ours)


def _kept(records: Sequence[Record], most: float, dtype: str) -> Record:
    title = f"kept for backward: at most {most} of the floor, on each of {QWEN}, {MIXTRAL}, {SONIC}"
    ratios: dict[str, float] = {}
    for preset in (QWEN, MIXTRAL, SONIC):
        record = _find(records, OURS, preset, STEP, dtype)
        if record is None or record.kept_bytes is None:
            return _verdict(title, None, f"memory of {_why_not(records, OURS, preset)}")
        shape, itemsize = Shape(*record.shape), DTYPES[dtype].itemsize
        kept = record.kept_bytes + shape.tokens * shape.dim * itemsize
        ratios[preset] = kept / shape.kept_floor(itemsize)
    numbers = ", ".join(f"{ratio:.3f} on {preset}" for preset, ratio in ratios.items())
    return _verdict(title, max(ratios.values()) <= most, numbers)


def _weights_once(records: Sequence[Record], most: float, dtype: str) -> Record:
    title = f"{RECIPE}, forward: at most {most} times reading the touched weights once"
    ours = _find(records, OURS, RECIPE, "forward", dtype)
    limits = ceilings_of(list(records), dtype)
    if ours is None or ours.median_ms is None:
        return _verdict(title, None, _why_not(records, OURS, RECIPE))
    if limits is None:
        return _verdict(title, None, "the ceilings were not measured")
    shape = Shape(*ours.shape)
    # With 64 slots on 8 experts all are touched but for a chance of 1 in 600; the count is not in the record.
    floor_ms = shape.weight_bytes(shape.num_experts, DTYPES[dtype].itemsize) / limits.gbps / 1e6
    numbers = f"x{ours.median_ms / floor_ms:.2f}: {1e3 * ours.median_ms:.1f} us against {1e3 * floor_ms:.1f} us"
    return _verdict(title, ours.median_ms <= most * floor_ms, numbers, ours)
