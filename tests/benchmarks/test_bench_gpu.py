"""That the GPU command works: its sections and their processes, on CPU with tiny sizes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.curves import curves_within
from benchmarks.gpu import cases, checks, command
from benchmarks.gpu.checks import BEYOND_32_BITS, LARGE, fitted, pytest_arguments
from benchmarks.gpu.processes import Waiting
from benchmarks.gpu.sections import SECTIONS, compiled_shapes
from benchmarks.gpu.setting import Setting
from benchmarks.records import Record, read, write
from benchmarks.shapes import Shape

H100, H200 = 80 * 10**9, 141 * 10**9


def test_without_a_gpu_the_command_names_the_rehearsal(tmp_path, monkeypatch):
    """Nothing is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU; --rehearsal"):
        main(["gpu", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="needs a GPU; --rehearsal"):
        Setting.real()


def test_sections_are_listed_with_what_they_measure(capsys):
    """In the help, correctness before speed."""
    with pytest.raises(SystemExit):
        main(["gpu", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {section.summary}" in output for name, section in SECTIONS.items())
    assert list(SECTIONS)[:3] == ["compile", "checks", "criteria"]


def test_the_default_sections_fit_in_five_minutes_with_room_for_the_criteria():
    """What comes before the criteria cannot take all of the time, and the whole ends within 300 s."""
    assert command.BUDGET <= 300
    names = list(SECTIONS)
    before = sum(SECTIONS[name].most for name in names[: names.index("criteria")])
    assert before + SECTIONS["criteria"].most + command.RESERVE <= command.BUDGET


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("criteria", "tests")]


@pytest.mark.parametrize("name", ["checks", "steps", "kernels", "liger", "scattermoe", "variants", "curves", *SLOW])
def test_every_section_runs_in_a_rehearsal(name):
    """All it gives are records, and nothing fails."""
    records = list(SECTIONS[name].run(Setting.rehearsal(), lambda: 100.0))
    assert records
    assert not [record for record in records if record.status == "failed"]
    measured = {(r.name, r.preset, r.direction) for r in records if r.median_ms is not None}
    expected = {
        "criteria": ("grouped_mm", "qwen3-30b-a3b", "forward+backward"),
        "steps": ("moekit-layer", "step-4096", "forward+backward"),
        "curves": ("grouped_mm", "experts", "forward"),
        "variants": ("dense", "qwen3-odd", "forward"),
    }
    assert name not in expected or expected[name] in measured


def test_comparisons_are_sized_by_the_memory():
    """The largest has all its experts on an H200, fewer on an H100, and still more than 2^32 elements."""
    shapes = {memory: {name: fitted(one, memory) for name, one in LARGE.items()} for memory in (H100, H200)}
    assert shapes[H200] == {name: one.shape for name, one in LARGE.items()}
    assert {name for name in LARGE if shapes[H100][name] != LARGE[name].shape} == {BEYOND_32_BITS}
    on_h100 = shapes[H100][BEYOND_32_BITS]
    assert isinstance(on_h100, Shape)
    assert on_h100.num_experts * 2 * on_h100.hidden_dim * on_h100.dim > 2**32
    assert on_h100.weight_bytes(on_h100.num_experts, 3 * 2 + 4) <= 0.85 * H100
    assert fitted(LARGE[BEYOND_32_BITS], 40 * 10**9) == "needs more than 71 GiB, there are 37"


def test_what_does_not_fit_is_absent():
    """With the memory that it needs."""
    records = list(SECTIONS["checks"].run(Setting.rehearsal()._replace(memory=0), lambda: 100.0))
    assert {record.status for record in records} == {"absent"}
    assert all("there are 0" in record.reason for record in records)


def test_a_section_without_time_left_gives_the_reason():
    """Instead of beginning."""
    records = list(SECTIONS["checks"].run(Setting.rehearsal(), lambda: 1.0))
    assert {record.reason for record in records} == {"no time was left"}
    real = Setting.rehearsal()._replace(tiny=False)
    late = [
        *cases.cases(real, lambda: 1.0, ("mixtral",), ("dense",)),
        *cases.variants(real, lambda: 1.0),
        *curves_within(real.device, "fp32", [], 0.0, lambda: 1.0, tiny=False),
    ]
    assert {record.kind for record in late} == {"check"}
    assert all("no time was left" in record.reason for record in late)


def test_a_comparison_sees_different_bits_and_wrong_values(monkeypatch):
    """Each is a reason of its own."""
    calls = iter(range(100))
    forward = torch.nn.functional.silu

    class Drifting:
        """A layer whose second run gives another value."""

        def build(self, workload):
            scale = torch.ones((), requires_grad=True)
            function = lambda x: forward(x * scale) * (1 + 1e-3 * next(calls))  # noqa: E731
            return checks_layer(function, scale)

    def checks_layer(function, scale):
        from benchmarks.peers import Layer

        return Layer(function, {"scale": scale}, lambda gradients: {})

    workload = Setting.rehearsal().draw(LARGE["recipe, T=32, bf16"].shape, "uniform", "fp32")
    record = checks.check("drifting", Drifting(), workload)
    assert record.status == "failed"
    assert "relative error" in record.reason
    assert "two runs gave different bits" in record.reason


def test_pytest_starts_where_its_benchmark_plugin_would_stop_it(monkeypatch):
    """That plugin is left out, and xdist is used where it is."""
    real = Setting.rehearsal()._replace(tiny=False, workers=12)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    arguments = pytest_arguments(real)
    assert " ".join(arguments).count("-p no:benchmark") == 1
    assert " ".join(arguments).endswith("-n 12")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "-n" not in pytest_arguments(real)


def test_what_is_compiled_first_covers_the_sections():
    """Every dtype and width that they launch by default."""
    shapes = compiled_shapes()
    assert {dtype for _, dtype in shapes} == {"bf16", "fp16", "fp32"}
    assert (LARGE[BEYOND_32_BITS].shape, "bf16") in shapes
    assert len(shapes) == len(set(shapes))


def alive(pid: int) -> bool:
    """Whether a process runs: it exists and is no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


PRINTS = "import sys; line = sys.stdin.readline(); print('seconds', line.strip(), flush=True); "


def test_a_process_waits_for_its_seconds_and_is_cut_off_with_all_that_it_started(tmp_path):
    """Nothing outlives it."""
    mark = tmp_path / "child"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    starts_child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cut = Waiting([sys.executable, "-c", PRINTS + starts_child], {})
    assert cut.run(3.0).code is None
    pid = int(mark.read_text())
    for _ in range(50):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)
    assert Waiting([sys.executable, "-c", PRINTS + "sys.exit(3)"], {}).run(20.0).code == 3
    unused = Waiting([sys.executable, "-c", PRINTS], {})
    unused.end()
    unused.end()


def stand_in(monkeypatch, scripts):
    """Sections run these scripts instead, each after its line with the seconds."""

    def of_section(name, options):
        return [sys.executable, "-c", "import sys, os; sys.stdin.readline(); " + scripts[name].format(out=options.out)]

    monkeypatch.setattr(command, "section_command", of_section)
    monkeypatch.setattr(command, "RESERVE", 0)


WRITES = """open("{out}/records.jsonl", "a").write('{{"kind": "check", "name": "%s", "section": "%s"}}\\n')"""


def test_the_command_judges_cuts_off_and_goes_on(tmp_path, capsys, monkeypatch):
    """One section aborts after its first record, one hangs, one has no time, one is all right."""
    scripts = {
        "kernels": WRITES % ("before the end", "kernels")
        + """; open("{out}/records.jsonl", "a").write('{{"kin'); os.abort()""",
        "checks": "import time; time.sleep(60)",
        "steps": WRITES % ("right", "steps"),
        "criteria": "",
    }
    stand_in(monkeypatch, scripts)
    for name, least, most in (("kernels", 0, 30), ("checks", 0, 0.5), ("steps", 0, 30), ("criteria", 10**6, 10**7)):
        monkeypatch.setitem(SECTIONS, name, SECTIONS[name]._replace(least=least, most=most))
    arguments = ["--out", str(tmp_path), "--budget", "100", "--rehearsal", "--section", *scripts]
    assert main(["gpu", *arguments]) == 1
    output = capsys.readouterr().out
    assert "RED: section kernels: ended with status -6" in output
    assert "INCOMPLETE: section criteria: only" in output
    assert "INCOMPLETE: section checks: cut off after 0 s" in output
    assert "UNMEASURED" in output
    assert "REHEARSAL: no time and no verdict above means anything." in output
    records = read(tmp_path / "records.jsonl")
    assert {"before the end", "right"} <= {record.name for record in records}  # half a line is dropped
    assert sum(r.kind == "criterion" for r in records) == 21


def test_sections_run_alone_into_one_folder(tmp_path, monkeypatch):
    """What runs again replaces its records, what does not stays; another commit is refused."""
    stand_in(monkeypatch, {"steps": WRITES % ("new", "steps")})
    path = tmp_path / "records.jsonl"
    commit = command.commit_of(command.HERE)[0]
    write(path, [Record("check", "old", section="steps"), Record("check", "kept", section="checks")])
    assert main(["gpu", "--out", str(tmp_path), "--rehearsal", "--section", "steps"]) == 0
    assert [r.name for r in read(path) if r.kind == "check"] == ["kept", "new"]
    write(path, [Record("check", "kept", section="checks", environment={"commit": "0000000"})])
    with pytest.raises(
        ValueError, match=rf"--out must be a new folder, or hold records of this commit, {commit}: .*0000000"
    ):
        command.main(command_options(tmp_path))
    write(path, [])


def command_options(folder):
    """The options of a rehearsal of one section."""
    from benchmarks.__main__ import parse

    return parse(["gpu", "--out", str(folder), "--rehearsal", "--section", "steps"])[0]


def test_a_checkout_of_sonicmoe_must_be_one(tmp_path, capsys):
    """Before anything starts."""
    assert main(["gpu", "--out", str(tmp_path), "--rehearsal", "--sonicmoe", str(tmp_path)]) == 2
    assert "--sonicmoe must be a checkout that holds the folder sonicmoe" in capsys.readouterr().err


@pytest.mark.slow
def test_a_section_runs_in_a_process_of_its_own(tmp_path):
    """From end to end: records with device, versions, commit and section."""
    arguments = ["--out", str(tmp_path), "--rehearsal", "--section", "steps", "--budget", "200"]
    subprocess.run([sys.executable, "-m", "benchmarks", "gpu", *arguments], check=False, timeout=300)
    records = [r for r in read(tmp_path / "records.jsonl") if r.kind == "case"]
    assert {record.section for record in records} == {"steps"}
    assert all({"device", "versions", "commit"} <= set(record.environment) for record in records)
