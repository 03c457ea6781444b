"""What the kernels and the layer are to reach, judged from the records of one run on a GPU.

Ratios are of one section, so of one process whose layers took turns. "of dense" is the speed relative to the faster of
two dense networks of as many operations.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.ceilings import ceilings_of
from benchmarks.records import Record, Status
from benchmarks.shapes import DTYPES, PRESETS, Shape

OURS, LAYER = "moekit-triton", "moekit-layer"
QWEN, MIXTRAL, OLMOE, SONIC = "qwen3-30b-a3b", "mixtral", "olmoe", "sonic-30b-512"
RECIPE, STEP_4096, DECODE = "medvlmoe-paper", "step-4096", "decode-qwen3-1"
STEP, FORWARD = "forward+backward", "forward"

OF_DENSE: dict[tuple[str, str], float] = {
    (QWEN, STEP): 0.92,
    (MIXTRAL, STEP): 0.97,
    (OLMOE, STEP): 0.93,
    (SONIC, STEP): 0.85,
    (QWEN, FORWARD): 0.95,
    (MIXTRAL, FORWARD): 0.95,
    (OLMOE, FORWARD): 0.95,
}
"""Least speed relative to the faster dense network, by workload and direction."""

TESTS = "tests/triton, compiled"
DIFFERENT_BITS = "two runs gave different bits"
KEPT, LAYER_COST, WEIGHTS_ONCE, VARIANT = 1.01, 1.04, 1.5, 0.85


class Run(NamedTuple):
    """The records of a run, and the dtype that the criteria are about."""

    records: Sequence[Record]
    dtype: str

    def find(self, name: str, preset: str, direction: str, section: str = "criteria") -> Record | None:
        """Returns a measured case at its preset's own size; None if there is none."""
        case = Record("case", name, preset=preset, shape=tuple(PRESETS[preset]), skew="uniform", dtype=self.dtype)
        key = dataclasses.replace(case, direction=direction, section=section).key()
        measured = (record for record in self.records if record.key() == key and record.median_ms is not None)
        return next(measured, None)

    def why_not(self, name: str, preset: str, section: str = "criteria") -> str:
        """Returns why a case was not measured."""
        for record in self.records:
            same = (record.kind, record.name, record.preset, record.section) == ("case", name, preset, section)
            if same and record.reason:
                return f"{name}: {record.reason}"
        return f"{name} was not run on {preset} at its own size in section {section}"


def judge(records: Sequence[Record], dtype: str = "bf16") -> list[Record]:
    """Returns one record per criterion: met, missed or unmeasured, with the numbers."""
    run = Run(records, dtype)
    return [
        *(_of_dense(run, preset, direction, least) for (preset, direction), least in OF_DENSE.items()),
        _times_as_fast(run, MIXTRAL, {"grouped_mm": "criteria"}, 1.0),
        _times_as_fast(run, QWEN, {"grouped_mm": "criteria"}, 1.6),
        _times_as_fast(run, QWEN, {"scattermoe": "scattermoe", "liger": "liger"}, 1.5),
        _kept(run),
        _peak(run),
        _milliseconds(run, LAYER, RECIPE, STEP, 0.9, "steps"),
        _milliseconds(run, LAYER, RECIPE, FORWARD, 0.30, "steps"),
        _milliseconds(run, LAYER, STEP_4096, STEP, 1.0, "steps"),
        _milliseconds(run, OURS, DECODE, FORWARD, 0.040, "criteria", graph=True),
        _weights_once(run),
        _layer_cost(run),
        _variants(run),
        _same_bits(run),
        _tests(run),
    ]


def _verdict(name: str, met: bool | None, reason: str, *ours: Record) -> Record:
    status: Status = "unmeasured" if met is None else "met" if met else "missed"
    wrong = [r for r in ours if r.disagrees is not None]
    if met is not None and wrong:
        worst = max(r.disagrees or 0.0 for r in wrong)
        status, reason = "missed", f"{reason}; but {wrong[0].name} disagrees with the reference by {worst:.1e}"
    return Record("criterion", name, status=status, reason=reason, preset=ours[0].preset if len(ours) == 1 else "")


def _of_dense(run: Run, preset: str, direction: str, least: float) -> Record:
    title = f"{preset}, {direction}: at least {least:.2f} of the dense network"
    ours = run.find(OURS, preset, direction)
    if ours is None:
        return _verdict(title, None, run.why_not(OURS, preset))
    if ours.of_dense is None:
        return _verdict(title, None, run.why_not("dense", preset))
    numbers = f"{ours.of_dense:.3f} of dense: {ours.median_ms:.4g} ms, {ours.tflops:.4g} TFLOP/s"
    return _verdict(title, ours.of_dense >= least, numbers, ours)


def _times_as_fast(run: Run, preset: str, peers: Mapping[str, str], least: float) -> Record:
    how = "faster than" if least == 1 else f"at least {least} times as fast as"
    title = f"{preset}, {STEP}: {how} {' and '.join(peers)}"
    ratios: dict[str, float] = {}
    times: list[str] = []
    measured: list[Record] = []
    for peer, section in peers.items():
        ours, other = run.find(OURS, preset, STEP, section), run.find(peer, preset, STEP, section)
        if ours is None or other is None or not ours.median_ms or not other.median_ms:
            continue
        ratios[peer] = other.median_ms / ours.median_ms
        times.append(f"x{ratios[peer]:.2f} against {peer} ({other.median_ms:.4g} ms, ours {ours.median_ms:.4g})")
        measured.append(ours)
    if not ratios:
        return _verdict(title, None, "; ".join(run.why_not(peer, preset, section) for peer, section in peers.items()))
    smallest = min(ratios.values())
    met = smallest > least if least == 1 else smallest >= least
    return _verdict(title, met, ", ".join(times), *measured[:1])


def _kept(run: Run) -> Record:
    title = f"kept for backward: at most {KEPT} of the floor, on each of {QWEN}, {MIXTRAL}, {OLMOE}, {SONIC}"
    ratios: dict[str, float | str] = {}
    for preset in (QWEN, MIXTRAL, OLMOE, SONIC):
        record = run.find(OURS, preset, STEP)
        if record is None or record.kept_bytes is None:
            ratios[f"on {preset}"] = _no_memory(run, record, preset)
            continue
        shape, itemsize = Shape(*record.shape), DTYPES[run.dtype].itemsize
        kept = record.kept_bytes + shape.tokens * shape.dim * itemsize
        ratios[f"on {preset}"] = kept / shape.kept_floor(itemsize)
    return _at_most(title, KEPT, ratios)


def _at_most(title: str, most: float, ratios: Mapping[str, float | str]) -> Record:
    """Judges several ratios, or reasons why one is missing: one too large is missed, whatever else is missing."""
    numbers = [f"{ratio:.3f} {case}" for case, ratio in ratios.items() if not isinstance(ratio, str)]
    reasons = list(dict.fromkeys(ratio for ratio in ratios.values() if isinstance(ratio, str)))
    missed = any(ratio > most for ratio in ratios.values() if not isinstance(ratio, str))
    met = False if missed else None if reasons else True
    return _verdict(title, met, "; ".join([*([", ".join(numbers)] if numbers else []), *reasons]))


def _peak(run: Run) -> Record:
    title = "peak memory of a step is measured"
    numbers: list[str] = []
    reasons: list[str] = []
    for preset in (QWEN, MIXTRAL, OLMOE, SONIC):
        record = run.find(OURS, preset, STEP)
        if record is None or record.peak_step_bytes is None:
            reasons.append(_no_memory(run, record, preset))
        else:
            numbers.append(f"{record.peak_step_bytes / 2**30:.2f} GiB on {preset}")
    return _verdict(title, None if reasons else True, "; ".join([*([", ".join(numbers)] if numbers else []), *reasons]))


def _no_memory(run: Run, record: Record | None, preset: str) -> str:
    return run.why_not(OURS, preset) if record is None else f"the memory of {OURS} was not measured on {preset}"


def _milliseconds(
    run: Run, name: str, preset: str, direction: str, most: float, section: str, graph: bool = False
) -> Record:
    shape = PRESETS[preset]
    how = "in a CUDA graph" if graph else "wall time, eager"
    title = f"{name}, {shape}, {direction}, {how}: at most {most:.3g} ms"
    ours = run.find(name, preset, direction, section)
    if ours is None or ours.median_ms is None:
        return _verdict(title, None, run.why_not(name, preset, section))
    if graph and not ours.graph:
        return _verdict(title, None, f"no graph was captured; {ours.median_ms:.4g} ms without")
    return _verdict(title, ours.median_ms <= most, f"{ours.median_ms:.4g} ms", ours)


def _weights_once(run: Run) -> Record:
    title = f"{RECIPE}, {FORWARD}: at most {WEIGHTS_ONCE} times reading the touched weights once"
    ours, limits = run.find(OURS, RECIPE, FORWARD), ceilings_of(list(run.records), run.dtype)
    if ours is None or ours.median_ms is None:
        return _verdict(title, None, run.why_not(OURS, RECIPE))
    if limits is None:
        return _verdict(title, None, "the ceilings were not measured")
    shape = Shape(*ours.shape)
    # With 64 slots on 8 experts all are touched but for a chance of 1 in 600; the count is not in the record.
    floor_ms = shape.weight_bytes(shape.num_experts, DTYPES[run.dtype].itemsize) / limits.gbps / 1e6
    numbers = f"x{ours.median_ms / floor_ms:.2f}: {1e3 * ours.median_ms:.1f} us against {1e3 * floor_ms:.1f} us"
    return _verdict(title, ours.median_ms <= WEIGHTS_ONCE * floor_ms, numbers, ours)


def _layer_cost(run: Run) -> Record:
    title = f"the whole layer with its router: at most {LAYER_COST} of its experts' time, on {QWEN} and {OLMOE}"
    ratios: dict[str, float | str] = {}
    for preset in (QWEN, OLMOE):
        for direction in (FORWARD, STEP):
            layer, experts = run.find(LAYER, preset, direction), run.find(OURS, preset, direction)
            if layer is None or experts is None or not layer.median_ms or not experts.median_ms:
                missing = LAYER if layer is None else OURS
                ratios[f"on {preset} {direction}"] = run.why_not(missing, preset)
            else:
                ratios[f"on {preset} {direction}"] = layer.median_ms / experts.median_ms
    return _at_most(title, LAYER_COST, ratios)


def _variants(run: Run) -> Record:
    title = (
        f"{STEP} relative to dense in other dtypes, widths, routings, with biases: at least {VARIANT} of uniform bf16"
    )
    own = [r for r in run.records if r.kind == "case" and r.section == "variants" and r.direction == STEP]
    own = [r for r in own if r.role == "experts" and r.of_dense is not None]
    base = run.find(OURS, QWEN, STEP, "variants")
    rest = [r for r in own if r is not base]
    if base is None or not rest:
        return _verdict(title, None, run.why_not(OURS, QWEN, "variants"))
    ratios = {_variant(r): (r.of_dense or 0) / (base.of_dense or 1) for r in rest}
    numbers = ", ".join(f"{ratio:.3f} {name}" for name, ratio in ratios.items())
    return _verdict(title, min(ratios.values()) >= VARIANT, numbers, *rest)


def _variant(record: Record) -> str:
    return f"{record.name} {record.preset} {record.skew} {record.dtype}"


def _same_bits(run: Run) -> Record:
    title = "run twice, same bits: output and all gradients of the large comparisons"
    compared = [r for r in run.records if r.kind == "check" and r.errors]
    if not compared:
        return _verdict(title, None, "no comparison was run")
    different = [r.name for r in compared if DIFFERENT_BITS in r.reason]
    return _verdict(title, not different, "; ".join(different) or f"{len(compared)} comparisons")


def _tests(run: Run) -> Record:
    title = f"all of {TESTS}"
    check = next((r for r in run.records if (r.kind, r.name) == ("check", TESTS)), None)
    if check is None or check.status == "absent":
        return _verdict(title, None, "not run" if check is None else check.reason)
    return _verdict(title, check.status == "ok", check.reason)
