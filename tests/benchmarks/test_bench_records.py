"""Records survive their file; comparisons find what changed and nothing else; reports are made of records alone."""

import dataclasses
import json
import random
import re

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.compare import check_same_device, compare, missing
from benchmarks.records import Record, from_line, read, to_line, write
from benchmarks.runner import with_ratios


def test_records_survive_their_file(tmp_path, case):
    """Full and nearly empty ones, and appending."""
    records = [case(errors={"output": 1e-3}, disagrees=0.5, graph=True), Record("ceiling", "copy"), case("b", None)]
    path = tmp_path / "folder" / "some.jsonl"
    write(path, records[:2])
    write(path, records[2:], append=True)
    assert read(path) == records


def test_what_is_no_record_is_refused():
    """The line is quoted."""
    with pytest.raises(ValueError, match=r"line must be a record .* got '\{\"layer\": 1\}'"):
        from_line(json.dumps({"layer": 1}))
    with pytest.raises(ValueError, match="line must be a record"):
        from_line("nonsense")


def test_a_planted_regression_is_found(case):
    """Twice the time is slower, half is faster, one percent is nothing."""
    names = {"a": 2.0, "b": 0.5, "c": 1.01}
    old = [case(name, 1.0) for name in names]
    new = [case(name, time) for name, time in names.items()]
    assert [d.verdict for d in compare(old, new)] == ["slower", "faster", "same"]


def test_noise_is_no_regression(case):
    """Runs of the same distribution, whose quantiles show how noisy they are, never differ."""
    draws = random.Random(0)

    def run(name: str) -> Record:
        times = sorted(draws.gauss(1.0, 0.1) for _ in range(21))
        return case(name, times[10], p20_ms=times[4], p80_ms=times[16])

    for _ in range(200):
        assert [d.verdict for d in compare([run("a")], [run("a")])] == ["same"]


def test_wider_spreads_make_a_comparison_more_careful(case):
    """The same ratio is a regression in a quiet run only."""
    old, new = case("a", 1.0), case("a", 1.15)
    noisy = [
        dataclasses.replace(r, p20_ms=0.8 * (r.median_ms or 0), p80_ms=1.2 * (r.median_ms or 0)) for r in (old, new)
    ]
    assert compare([old], [new])[0].verdict == "slower"
    assert compare(noisy[:1], noisy[1:])[0].verdict == "same"
    assert compare([old], [new], floor=0.2)[0].verdict == "same"


def test_memory_that_grows_is_reported_once(case):
    """Of the forward record, which every direction repeats."""
    old = [case(direction=d, saved_bytes=100) for d in ("forward", "forward+backward")]
    new = [case(direction=d, saved_bytes=150) for d in ("forward", "forward+backward")]
    assert [d.verdict for d in compare(old, new)] == ["same", "more memory", "same"]


def test_different_devices_are_not_compared(case):
    """Unless an option allows it."""
    other = case(environment={"device": "another", "threads": 2})
    with pytest.raises(ValueError, match=r"same device and threads, got invented \(1 threads\) and another"):
        check_same_device([case()], [other])
    check_same_device([case()], [case(median_ms=2.0)])


def test_the_command_ends_with_the_verdict(tmp_path, capsys, case):
    """Status 0 for the same, 1 for slower or gone, 2 for another device."""
    old, new, device = (tmp_path / f"{name}.jsonl" for name in ("old", "new", "device"))
    write(old, [case("a"), case("b")])
    write(new, [case("a"), case("b", 3.0)])
    write(device, [case("a", environment={"device": "another"})])
    assert main(["compare", str(old), str(old)]) == 0
    assert main(["compare", str(old), str(new)]) == 1
    assert "slower" in capsys.readouterr().out
    write(new, [case("a")])
    assert missing(read(old), read(new)) == [case("b")]
    assert main(["compare", str(old), str(new)]) == 1
    assert "gone         b" in capsys.readouterr().out
    assert main(["compare", str(old), str(device)]) == 2
    assert "old and new must be of the same device and threads" in capsys.readouterr().err
    assert main(["compare", str(old), str(device), "--across-devices"]) == 1


def test_ratios_are_to_the_fastest_dense_network_and_the_ceilings_of_the_run(case):
    """Only within the same workload and direction."""
    dense = [case("dense", 2.0, role="ceiling"), case("dense-compiled", 1.5, role="ceiling")]
    elsewhere = case("dense", 0.1, role="ceiling", direction="forward")
    limits = [Record("ceiling", "matmul", dtype="bf16", tflops=40.0), Record("ceiling", "copy", gbps=400.0)]
    records = with_ratios([*dense, elsewhere, case(median_ms=3.0)], limits)
    assert [r.of_dense for r in records] == [0.75, 1.0, 1.0, 0.5]
    assert records[-1].of_matmul == 0.25
    assert records[-1].of_copy == 0.25
    assert with_ratios([case()], [])[0].of_dense is None


@pytest.fixture
def folder(tmp_path, case):
    """A folder like ``benchmarks/`` with invented records."""
    (tmp_path / "README.md").write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    records = [
        Record("ceiling", "matmul", dtype="bf16", tflops=40.0, median_ms=1.0, environment={"device": "invented"}),
        Record("ceiling", "copy", gbps=400.0, median_ms=1.0),
        case("dense", 1.0, role="ceiling", of_dense=1.0),
        case("moekit-torch", 2.0, of_dense=0.5, saved_bytes=1 << 20),
        case("expert-loop", 4.0, of_dense=0.25, disagrees=0.125),
        case("liger", None, status="absent", reason="liger-kernel is not installed", direction=""),
        dataclasses.replace(case("1. some_kernel", 0.5), kind="stage", remark="kernel", direction="forward"),
        Record("criterion", "some goal", status="missed", reason="x0.50"),
        Record("check", "some check", status="failed", reason="relative error 1"),
    ]
    write(tmp_path / "results" / "here.jsonl", records)
    return tmp_path


def test_the_report_is_made_of_the_records_and_repeats_itself(folder):
    """Tables, pictures, reasons; a second run changes no byte."""
    pytest.importorskip("matplotlib")
    report.write_tables(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = (folder / "README.md").read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| moekit-torch | 2 | 1.98 | 2.02 | 10 TFLOP/s | 0.50 | 1.00 | 1 MiB |" in text
    assert "**disagrees by 1.2e-01**" in text
    assert "- liger: liger-kernel is not installed" in text
    assert "| 1. some_kernel | forward | kernel | 0.5 |" in text
    assert "| some goal | missed | x0.50 |" in text
    assert "| some check | failed | relative error 1 |" in text
    assert "![here.svg](results/here.svg)" in text
    pictures = [(folder / "results" / name).read_text() for name in ("here.svg", "here.roofline.svg")]
    assert all(picture.startswith("<?xml") for picture in pictures)
    shapes = "".join(picture.partition("</style>")[2] for picture in pictures)
    for picture in pictures:
        dark = picture.partition("</style>")[0].partition("prefers-color-scheme: dark")[2]
        replaced = re.findall(r'\[style\*="(.*?)"\]', dark)
        assert len(replaced) == 4
        assert all(colour in shapes for colour in replaced)
    report.write_tables(folder)
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_readme_without_its_markers_is_refused(tmp_path):
    """Nothing is overwritten."""
    (tmp_path / "README.md").write_text("only text")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.write_tables(tmp_path)


def test_a_line_leaves_out_what_is_empty(case):
    """Short lines stay short."""
    assert json.loads(to_line(Record("ceiling", "copy"))) == {"kind": "ceiling", "name": "copy", "status": "ok"}
