"""What other pages show of the records of a GPU, and that the committed pages show what the records say."""

import dataclasses

import pytest

from benchmarks import report, summary
from benchmarks.records import Record, read, write
from benchmarks.shapes import PRESETS

QWEN, RECIPE = "qwen3-30b-a3b", "medvlmoe-paper"
ABOUT = {"device": "invented", "date": "2030-01-02", "commit": "abcdef0", "versions": {"torch": "9.1", "triton": "9.2"}}


@pytest.fixture
def records(case):
    """Ours beside others: many tokens and few, each in its section."""

    def of(section, name, ms, preset=QWEN, direction="forward+backward", **changes):
        record = case(name, ms, preset=preset, direction=direction, environment=ABOUT, **changes)
        return dataclasses.replace(record, section=section)

    forward = {"direction": "forward"}
    stage = dataclasses.replace(
        of("kernels", "1. some_kernel", 3.0, direction="backward"), kind="stage", remark="kernel"
    )
    return [
        Record("ceiling", "matmul", dtype="bf16", tflops=700.0, remark="8 x 8 x 8", environment=ABOUT),
        Record("ceiling", "copy", gbps=3000.0, environment=ABOUT),
        of("criteria", "moekit-triton", 4.0, of_dense=0.9, tflops=600.0, **forward),
        of("criteria", "moekit-triton", 16.0, of_dense=0.8, tflops=455.4),
        of("criteria", "grouped_mm", 32.0, of_dense=0.4),
        of("scattermoe", "scattermoe", 24.0),
        of("liger", "liger", 30.0),
        of("liger", "moekit-triton", 15.0),
        of("criteria", "moekit-triton", 0.0964, RECIPE, graph=True, **forward),
        of("criteria", "moekit-triton", 2.786, RECIPE),
        of("criteria", "grouped_mm", 1.443, RECIPE),
        of("steps", "dense", 0.36, RECIPE),
        of("steps", "moekit-layer", 2.8, RECIPE),
        stage,
    ]


def test_experts_are_compared_with_what_ran_beside_them(records):
    """Liger with ours of its own section, ScatterMoE with that of the criteria; what is missing is a dash."""
    lines = summary.experts_table(records)
    assert lines[2] == (
        f"| {QWEN}: {PRESETS[QWEN]} | 4.00 · 16.0 | 600 · 455 | 0.90 · 0.80 | – · 2.00 | scattermoe – · 1.50; "
        "liger – · 2.00 |"
    )
    assert len(lines) == 4  # two of the head, one workload, an empty line: the recipe has too few slots


def test_few_tokens_are_in_microseconds_and_their_steps_in_milliseconds(records):
    """Where ours is slower, too."""
    assert summary.few_table(records)[2] == f"| {RECIPE}: {PRESETS[RECIPE]} | 96.4 | – | – | – | 2.79 | 1.44 |"


def test_wall_times_name_ours_first(records):
    """Then the others, in the order of the records."""
    lines = summary.steps_table(records)
    assert lines[0] == "| workload | moekit-layer, a step | dense, a step |"
    assert lines[2] == f"| {RECIPE}: {PRESETS[RECIPE]} | 2.80 | 0.360 |"


def test_kernels_have_a_column_for_each_workload(records):
    """Milliseconds and rate."""
    assert summary.kernels_table(records)[2] == "| backward 1. some_kernel | 3.00, 10 |"


def test_tables_without_records_are_empty():
    """Instead of heads without rows."""
    tables = (summary.experts_table, summary.few_table, summary.steps_table, summary.kernels_table)
    assert [table([]) for table in tables] == [[]] * 4


def test_a_page_shows_the_newest_records_of_a_gpu(tmp_path, records, case):
    """Where it has the markers; files of a CPU are left out, and the rest of the page stays."""
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    older = [dataclasses.replace(r, environment=ABOUT | {"date": "2029-01-01"}) for r in records]
    write(results / "zzz.jsonl", older)
    write(results / "aaa.jsonl", records)
    write(results / "cpu.jsonl", [case("moekit-torch", environment=ABOUT | {"date": "2031-01-01"})])
    assert report.newest_of_a_gpu(results) == results / "aaa.jsonl"
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    names = ("about", "experts", "picture")
    page.write_text(
        "top\n" + "".join(f"<!-- gpu {n}: begin -->\nold\n<!-- gpu {n}: end -->\n" for n in names) + "end\n"
    )
    report.write_briefly(page, results)
    text = page.read_text()
    assert text.startswith("top\n")
    assert text.endswith("end\n")
    assert "old" not in text
    assert (
        "Measured on 2030-01-02 on one invented with torch 9.1 and Triton 9.2, in bfloat16, at commit abcdef0." in text
    )
    assert "a product of 8 x 8 x 8 reached 700 TFLOP/s and a copy 3.00 TB/s" in text
    assert "(../results/aaa.many.svg)" in text
    assert (results / "aaa.many.svg").is_file()
    assert "| kernel |" not in text
    report.write_briefly(page, results)
    assert page.read_text() == text
    (tmp_path / "empty").mkdir()
    report.write_briefly(page, tmp_path / "empty")
    assert page.read_text() == text


def test_a_run_with_other_libraries_is_shown_before_newer_ones_of_some_sections(tmp_path, records, case):
    older = [dataclasses.replace(r, environment=ABOUT | {"date": "2029-01-01"}) for r in [*records, case("liger")]]
    write(tmp_path / "whole.jsonl", older)
    write(tmp_path / "sections.jsonl", [r for r in records if r.name not in summary.OTHERS])
    assert [path.stem for path in report.of_a_gpu(tmp_path)] == ["whole", "sections"]


def test_the_committed_pages_show_what_the_committed_records_say():
    """So no figure of a table is written by hand."""
    runs = [read(path) for path in report.of_a_gpu(report.HERE / "results")]
    readme, docs = (report.HERE.parent / name for name in ("README.md", "docs/benchmarks.md"))
    for page, names in ((readme, ("experts",)), (docs, tuple(report.BRIEFLY))):
        for name in names:
            (table,) = report.BRIEFLY[name]
            newest = next(lines for run in runs if (lines := table(run)))
            assert "\n".join(filter(None, newest)) in page.read_text(), f"{page.name}: python -m benchmarks report"
        assert summary.about(runs[0]) in page.read_text()


def test_a_table_without_newest_records_is_of_older_ones_and_says_so(tmp_path, records, case):
    pytest.importorskip("matplotlib")
    steps = [dataclasses.replace(r, section="steps") for r in records if r.kind == "case"]
    older = [dataclasses.replace(r, environment=ABOUT | {"date": "2029-01-01", "commit": "1234567"}) for r in steps]
    write(tmp_path / "results" / "zzz.jsonl", older)
    write(tmp_path / "results" / "aaa.jsonl", [r for r in records if r.section != "steps"])
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- gpu {n}: begin -->\n<!-- gpu {n}: end -->\n" for n in ("experts", "steps")))
    report.write_briefly(page, tmp_path / "results")
    experts, steps_text = page.read_text().split("<!-- gpu experts: end -->")
    assert "These are of" not in experts
    assert "These are of one invented, commit 1234567, 2029-01-01." in steps_text
    assert "| workload |" in steps_text


def test_the_committed_records_of_a_gpu_say_where_they_are_from():
    """Device, versions and commit; a source where the benchmarks did not write them."""
    path = report.newest_of_a_gpu(report.HERE / "results")
    assert path is not None
    for record in read(path):
        assert {"device", "versions", "commit", "date"} <= record.environment.keys()
        assert record.source or record.environment.get("command") or record.kind == "check"
