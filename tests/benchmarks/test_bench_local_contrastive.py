"""The benchmark of the local loss compares like with like, and its verdict follows its numbers."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from benchmarks import local_contrastive as bench
from benchmarks.__main__ import main
from benchmarks.memory import resident_peak
from benchmarks.records import Record, read
from benchmarks.report import file_section

SMALL = ["--batch=3", "--words=2", "--regions=5", "--dim=4", "--device=cpu", "--seconds=0.01"]


@pytest.mark.parametrize("form", list(bench.FORMS))
def test_all_forms_are_one_function(form):
    """Loss and gradients, in float64."""
    record = bench.check(form, torch.device("cpu"))
    assert record.status == "ok"
    assert set(record.errors) == {"loss", "regions", "words"}


def test_a_form_that_is_off_is_noticed(monkeypatch):
    """By more than rounding."""
    scores = bench.plain_scores
    monkeypatch.setitem(bench.FORMS, "off", ("", lambda *inputs: scores(*inputs) * 1.001))
    assert bench.check("off", torch.device("cpu")).status == "failed"


@pytest.mark.parametrize(("ours", "status"), [(25, "met"), (26, "missed"), (None, "unmeasured")])
def test_the_verdict_is_a_quarter(ours, status):
    """Of the peak of all texts at once."""
    case = Record("case", bench.NAIVE, preset="some", peak_step_bytes=100)
    verdict = bench.verdict([case, dataclasses.replace(case, name=bench.OURS, peak_step_bytes=ours)])
    assert verdict.status == status


def test_sizes_that_raise_no_peak_have_no_verdict():
    """The smallest sizes fit into memory that the process holds already."""
    case = Record("case", bench.NAIVE, preset="some", peak_step_bytes=0)
    verdict = bench.verdict([case, dataclasses.replace(case, name=bench.OURS)])
    assert verdict.status == "unmeasured"
    assert "choose larger sizes" in verdict.reason


def test_the_command_writes_records_that_the_report_can_read(tmp_path, monkeypatch):
    """One form in a process of its own; one that cannot run gives the reason."""
    forms = {bench.OURS: bench.FORMS[bench.OURS], "absent": ("not there", bench.plain_scores)}
    monkeypatch.setattr(bench, "FORMS", forms)
    monkeypatch.setattr(bench, "check", lambda form, device: Record("check", form, errors={"loss": 0.0}))
    assert not main(["local-contrastive", *SMALL, f"--out={tmp_path / 'local.jsonl'}"])
    records = {(record.kind, record.name): record for record in read(tmp_path / "local.jsonl")}
    measured, failed = records["case", bench.OURS], records["case", "absent"]
    assert measured.repeats >= 3
    assert measured.preset == "B=3 N=2 M=5 D=4"
    assert failed.status == "failed"
    assert "invalid choice: 'absent'" in failed.reason
    section = file_section(tmp_path / "local.jsonl")
    assert "| moekit |" in section
    assert "unmeasured" in section


def peak_of_a_tensor(size: int) -> int:
    return resident_peak(lambda: torch.ones(size // 4).sum().item())


@pytest.mark.skipif(not bench.Path("/proc/self/status").exists(), reason="reads /proc")
def test_resident_memory_counts_what_is_freed_again():
    """A tensor larger than anything before raises the peak by its size: in a process of its own, as measures are."""
    size = 256 << 20
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        assert process.submit(peak_of_a_tensor, size).result() > 0.9 * size
