"""The engine of sweeps: what is run, kept, tried again and refused."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.shared.runs import read_json, write_json
from recipes.shared.sweeps import Cell, SweepFolder, run_sweep
from recipes.shared.sweeps.engine import POLL_SECONDS
from recipes.shared.sweeps.locks import try_lock
from tests.recipes.shared.sweeps.stub_cells import cell, run_stub
from tests.test_import import ROOT


def sweep(cells, folder, **options):
    return run_sweep(cells, folder, run_stub, files=("output.csv",), progress=False, **options)


def starts(folder, name):
    return len((folder / "runs" / name / "starts.log").read_text().splitlines())


def test_finished_cells_are_kept_and_run_again_only_when_asked(tmp_path):
    cells = [cell("a"), cell("b", value=2.0)]
    first = sweep(cells, tmp_path)
    assert {name: one.result["total"] for name, one in first.items()} == {"a": 10.0, "b": 20.0}
    assert sweep(cells, tmp_path) == first
    assert (starts(tmp_path, "a"), starts(tmp_path, "b")) == (1, 1)
    again = sweep(cells, tmp_path, redo=("b*",))
    assert again["a"] == first["a"]
    assert again["b"].attempt != first["b"].attempt
    assert starts(tmp_path, "b") == 1  # in a folder made anew


def test_a_failing_cell_is_a_record_and_the_sweep_goes_on(tmp_path, capfd):
    cells = [cell("bad", error="no such\nclass"), cell("dead", signal=signal.SIGKILL), cell("good")]
    records = sweep(cells, tmp_path)
    assert records["bad"].state == records["dead"].state == "failed"
    assert records["bad"].error == "ValueError: no such class"
    assert records["dead"].error == "its process ended by SIGKILL: perhaps for lack of memory"
    assert records["good"].state == "finished"
    assert "Traceback" in (tmp_path / "cells" / "bad" / "log.txt").read_text()
    # Failed cells are tried again, here with what made them fail mended.
    mended = sweep([cell("bad"), cell("dead"), cell("good")], tmp_path)
    assert {one.state for one in mended.values()} == {"finished"}
    assert mended["good"] == records["good"]


def test_a_cell_goes_on_with_what_a_killed_attempt_left(tmp_path):
    place = SweepFolder(tmp_path)
    one = cell("a")
    for folder in (place.run("a"), place.state("a")):
        folder.mkdir(parents=True)
    (place.run("a") / "steps.txt").write_text("xxxx")
    write_json(place.state("a") / "settings.json", {"checksum": one.checksum})
    assert sweep([one], tmp_path)["a"].result["total"] == 10
    assert (place.run("a") / "steps.txt").read_text() == "x" * 10
    # What was begun with other settings is no beginning.
    (place.state("a") / "record.json").unlink()
    (place.run("a") / "steps.txt").write_text("x" * 25)
    assert sweep([cell("a", value=2.0)], tmp_path)["a"].result["total"] == 20


@pytest.mark.parametrize("damage", ["record cut off", "record empty", "no object", "output cut off", "output lost"])
def test_half_written_files_do_not_count(tmp_path, damage):
    (kept,) = sweep([cell("a")], tmp_path).values()
    record, output = tmp_path / "cells/a/record.json", tmp_path / "runs/a/output.csv"
    if damage == "record cut off":
        record.write_text(record.read_text()[:-20])
    elif damage in ("record empty", "no object"):
        record.write_text("" if damage == "record empty" else "[1, 2]")
    elif damage == "output cut off":
        output.write_text(output.read_text()[:-3])
    else:
        output.unlink()
    assert SweepFolder(tmp_path).record("a") is None
    (again,) = sweep([cell("a")], tmp_path).values()
    assert (again.result, again.files) == (kept.result, kept.files)
    assert len(output.read_text().splitlines()) == 100


def test_two_sweeps_share_the_cells(tmp_path):
    command = [sys.executable, "-m", "tests.recipes.shared.sweeps.stub_cells", str(tmp_path), "0.6"]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    names = ["a/a", "a/b", "b/a", "b/b"]
    assert [starts(tmp_path, name) for name in names] == [1, 1, 1, 1]
    assert (tmp_path / "table.csv").read_text() == "cell,total\na/a,10.0\na/b,20.0\nb/a,20.0\nb/b,40.0\n"


def test_the_tables_of_a_sweep_that_is_killed_are_those_of_one_that_is_not(tmp_path):
    def start(folder):
        command = [sys.executable, "-m", "tests.recipes.shared.sweeps.stub_cells", str(folder), "0.4"]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    folder = tmp_path / "killed"
    for steps in (1, 14, 25):  # of 40 in all
        process = start(folder)
        deadline = time.monotonic() + 60
        while sum(len(path.read_text()) for path in folder.rglob("steps.txt")) < steps:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (folder / "table.csv").exists()
    assert start(folder).wait(timeout=60) == 0
    assert (folder / "table.csv").read_text() == "cell,total\na/a,10.0\na/b,20.0\nb/a,20.0\nb/b,40.0\n"
    assert {len(path.read_text()) for path in folder.rglob("steps.txt")} == {10}


HOLD = (
    "import sys, time; from pathlib import Path; from recipes.shared.sweeps.locks import try_lock\n"
    "with try_lock(Path(sys.argv[1])) as held:\n    print(held, flush=True)\n    time.sleep(float(sys.argv[2]))"
)


def holder(lock, seconds):
    """A process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "True"
    return process


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    with holder(tmp_path / "lock", 60) as process:
        with try_lock(tmp_path / "lock") as held:
            assert not held
        process.kill()
    with try_lock(tmp_path / "lock") as held:
        assert held


def test_a_cell_of_another_process_is_waited_for_and_taken_over(tmp_path):
    state = SweepFolder(tmp_path).state("a")
    state.mkdir(parents=True)
    started = time.monotonic()
    with holder(state / "lock", 4 * POLL_SECONDS):
        assert sweep([cell("a")], tmp_path)["a"].state == "finished"
    assert time.monotonic() - started > 4 * POLL_SECONDS


def test_a_record_says_where_its_figures_come_from(tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    one = cell("a", data_file=True)
    sweep([one], tmp_path)
    record = read_json(tmp_path / "cells/a/record.json")
    assert record["settings"] == one.checksum == Cell("other", dict(reversed(one.settings.items()))).checksum
    assert record["commit"]
    assert record["seconds"] > 0
    assert list(record["files"]) == ["output.csv"]


def test_what_a_sweep_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"cells must have different names, got a more than once"):
        sweep([cell("a"), cell("a")], tmp_path)
    with pytest.raises(ValueError, match=r"workers \(--workers\) must be at least 1, got 0"):
        sweep([cell("a")], tmp_path, workers=0)
    with pytest.raises(ValueError, match=r"redo \(--redo\) must fit the name of a cell, got 'c\*'. Cells: a, b"):
        sweep([cell("a"), cell("b")], tmp_path, redo=("c*",))
    with pytest.raises(ValueError, match=r"name of a cell must consist of letters, .* got '../a'"):
        cell("../a")
    sweep([cell("a")], tmp_path)
    with pytest.raises(ValueError, match=r"1 finished cells were run with other settings: a. Give the options of then"):
        sweep([cell("a", value=3.0)], tmp_path)
    assert sweep([cell("a", value=3.0)], tmp_path, redo=("*",))["a"].result["total"] == 30
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .* give another --out"):
        sweep([cell("a")], file)


def test_a_missing_output_is_a_failure(tmp_path):
    records = run_sweep([cell("a")], tmp_path, run_stub, files=("other.csv",), progress=False)
    assert records["a"].error.endswith("lacks other.csv")


def test_progress_says_how_each_cell_ended(tmp_path, capsys):
    run_sweep([cell("a"), cell("b", error="x")], tmp_path, run_stub)
    lines = capsys.readouterr().out
    assert "a: finished, " in lines
    assert f"b: failed (ValueError: x); log: {Path(tmp_path) / 'cells' / 'b' / 'log.txt'}" in lines
