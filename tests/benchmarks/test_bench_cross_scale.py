"""``python -m benchmarks cross-scale`` from end to end with a tiny size, and its verdicts."""

import dataclasses

import pytest
import torch

from benchmarks import cross_scale, report
from benchmarks.__main__ import main
from benchmarks.cross_scale import ALL, ONE, ROUTED, Pyramid, verdicts
from benchmarks.records import Record, read
from benchmarks.timing import Step, time_in_turn

TINY = Pyramid(channels=(2, 3), sizes=(4, 2))


@pytest.mark.parametrize("layout", [[], ["--channels-last"]])
def test_the_command_writes_cases_and_verdicts(tmp_path, capsys, monkeypatch, layout) -> None:
    """One routed expert of six costs the operations of one, all of them six times as many."""
    path = tmp_path / "records.jsonl"
    arguments = "--batch 6 --dim 4 --device cpu --seconds 0"
    monkeypatch.setattr(cross_scale, "SIZES", TINY)
    assert not main(["cross-scale", *arguments.split(), "--out", str(path), *layout])
    records = read(path)
    cases = [record for record in records if record.kind == "case"]
    directions = ("forward", "forward+backward")
    assert [(r.direction, r.name) for r in cases] == [(d, n) for d in directions for n in (ONE, ROUTED, ALL)]
    for one, routed, everything in (cases[:3], cases[3:]):
        assert one.flops > 0
        assert routed.flops == one.flops
        assert everything.flops == 6 * one.flops
        assert 0 < one.p20_ms <= one.median_ms <= one.p80_ms
    assert cases[3].flops > 2 * cases[0].flops
    assert [r.kind for r in records[6:]] == ["criterion", "criterion"]
    assert "K=6 hard-routed at most 1.25 times the time of K=1" in capsys.readouterr().out
    section = report.file_section(path)
    assert "K=6, every expert for every sample" in section
    assert ("channels last" in section) == bool(layout)


def test_a_verdict_is_met_up_to_its_bound_and_missed_beyond() -> None:
    """Each direction is judged alone."""
    times = {"forward": (4.0, 5.0, 24.0), "forward+backward": (4.0, 5.5, 24.0)}
    base = Record("case", "", preset="invented")
    records = [
        dataclasses.replace(base, name=name, direction=direction, median_ms=time)
        for direction, row in times.items()
        for name, time in zip((ONE, ROUTED, ALL), row, strict=True)
    ]
    met, missed = verdicts(records)
    assert (met.status, missed.status) == ("met", "missed")
    assert met.reason == "x1.250: 5 ms against 4 ms; with all experts run x6.000: 24 ms"


def test_steps_take_turns() -> None:
    """So that what else the machine does falls on all of them; in other orders, so that none always follows one."""
    seen: list[str] = []
    steps = {name: Step(lambda _, name=name: seen.append(name)) for name in "ab"}
    timings = time_in_turn(steps, torch.device("cpu"), seconds=0.0, least=8)
    assert [timing.repeats for timing in timings.values()] == [8, 8]
    rounds = {tuple(seen[start : start + 2]) for start in range(len(seen) - 16, len(seen), 2)}
    assert rounds == {("a", "b"), ("b", "a")}
    with pytest.raises(ValueError, match="steps must hold at least one step"):
        time_in_turn({}, torch.device("cpu"))
