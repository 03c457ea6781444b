"""How cost grows: the points of the curves, their records, tables and pictures."""

from pathlib import Path

import pytest
import torch

from benchmarks import curves
from benchmarks.__main__ import main
from benchmarks.curve_tables import PROCESSOR_TIME, curve_tables, memory_label
from benchmarks.pictures import draw_curves, style_of
from benchmarks.records import Record, read
from benchmarks.shapes import Shape

BASE = Shape(1024, 256, 256, 16, 4)
RESULTS = Path(curves.__file__).parent / "results"


def of(name):
    """The points of one curve."""
    return curves.points(BASE, 8192, curves=(name,))


def test_tokens_grow_from_one_to_the_most():
    """All else is the base's; the largest comes first."""
    tokens = [point.shape.tokens for point in of("tokens")]
    assert tokens == [8192, 4096, 1024, 256, 64, 16, 4, 1]
    assert {point.shape._replace(tokens=0) for point in of("tokens")} == {BASE._replace(tokens=0)}


def test_more_experts_are_as_many_operations():
    """From 1 to 512; with fewer experts than K, each token takes all of them, which are wider."""
    shapes = [point.shape for point in of("experts")]
    assert [shape.num_experts for shape in shapes] == [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert {shape.flops("forward") for shape in shapes} == {BASE.flops("forward")}
    assert shapes[-1] == Shape(1024, 256, 1024, 1, 1)


def test_top_k_and_skew_grow_alone():
    """Operations grow with K, and not with the skew."""
    assert [point.shape.top_k for point in of("top-k")] == [16, 8, 4, 2, 1]
    assert [point.skew for point in of("skew")] == ["zipf 3", "zipf 2", "zipf 1.5", "zipf 1", "zipf 0.5", "uniform"]
    assert {point.shape for point in of("skew")} == {BASE}


def test_the_command_measures_and_the_report_draws(tmp_path, monkeypatch):
    """Every point of a small base, by peers that take turns; a picture and a table for each curve."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(curves, "CPU_BASE", Shape(8, 16, 8, 4, 2))
    path = tmp_path / "cpu-curves.jsonl"
    arguments = f"--device cpu --dtype fp32 --seconds 0 --tokens 8 --curve tokens top-k --out {path}"
    assert main(["curves", *arguments.split(), "--peer", "dense", "moekit-torch", "liger"]) == 0
    records = read(path)
    measured = [r for r in records if r.median_ms is not None]
    assert {(r.kind, r.name, r.direction) for r in measured} == {
        ("curve", name, direction) for name in ("dense", "moekit-torch") for direction in curves.PASSES
    }
    assert [r.shape[0] for r in measured if r.preset == "tokens" and r.name == "dense"] == [8, 8, 4, 4, 1, 1]
    assert all(r.disagrees is None and r.saved_bytes is not None for r in measured if r.name == "moekit-torch")
    assert {r.reason for r in records if r.name == "liger"} == {"liger-kernel runs on a GPU only"}
    assert memory_label(measured) == "kept for backward"
    table = curve_tables(records)
    assert table[0].startswith("**forward+backward, growing tokens**: ms, MiB kept for backward; fp32")
    assert [line.split(" | ")[0] for line in table[4:7]] == ["| 1", "| 4", "| 8"]
    pictures = draw_curves(records, path)
    assert [picture.name for picture in pictures] == ["cpu-curves.tokens.svg", "cpu-curves.top-k.svg"]
    assert "experts per token" in pictures[1].read_text()
    first = pictures[0].read_bytes()
    assert draw_curves(records, path)[0].read_bytes() == first


@pytest.mark.parametrize(
    "path", [RESULTS / "cpu-curves.jsonl", RESULTS / "cpu-transformers.jsonl"], ids=lambda path: path.stem
)
def test_layers_of_one_committed_picture_look_different(path):
    names = {record.name for record in read(path) if record.kind == "curve" and record.median_ms is not None}
    assert len(names) > 1
    assert len(set(map(style_of, names))) == len(names)


def test_time_of_the_processor_is_said(tmp_path, monkeypatch):
    """In the remark, and over the table."""
    monkeypatch.setattr(curves, "CPU_BASE", Shape(8, 16, 8, 4, 2))
    path = tmp_path / "busy.jsonl"
    arguments = f"--device cpu --dtype fp32 --seconds 0 --tokens 1 --curve tokens --processor-time --out {path}"
    assert main(["curves", *arguments.split(), "--peer", "dense"]) == 0
    assert all(PROCESSOR_TIME in record.remark for record in read(path))
    assert f"ms ({PROCESSOR_TIME}), MiB" in curve_tables(read(path))[0]


def test_points_without_time_are_named(tmp_path, monkeypatch):
    """Each with its sizes."""
    monkeypatch.setattr(curves, "CPU_BASE", Shape(8, 16, 8, 4, 2))
    path = tmp_path / "late.jsonl"
    arguments = f"--device cpu --dtype fp32 --budget -1 --curve skew --out {path}"
    assert main(["curves", *arguments.split()]) == 0
    records = read(path)
    assert {(r.kind, r.name, r.status) for r in records} == {("check", "curve of skew", "absent")}
    assert records[0].reason == "no time was left for T=8 D=16 F=8 E=4 K=2, zipf 3"


def test_memory_on_a_gpu_is_the_peak_of_a_step():
    """And a missing point is a dash."""
    shape = {"shape": (4, 8, 8, 4, 2), "preset": "tokens", "direction": "forward+backward", "skew": "uniform"}
    ours = Record("curve", "moekit-triton", median_ms=1.5, peak_step_bytes=3 << 20, saved_bytes=1 << 20, **shape)
    more = Record("curve", "dense", median_ms=2.0, peak_step_bytes=5 << 20, **{**shape, "shape": (8, 8, 8, 4, 2)})
    assert curve_tables([ours, more])[4:6] == [
        "| 4 | T=4 D=8 F=8 E=4 K=2 | 1.5, 3 | – |",
        "| 8 | T=8 D=8 F=8 E=4 K=2 | – | 2, 5 |",
    ]


def test_on_a_gpu_tokens_grow_further():
    """To 131072."""
    assert curves._ends(torch.device("cuda"))[1] == 131072
    assert curves._ends(torch.device("cpu"))[1] == 8192
