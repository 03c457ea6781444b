"""``python -m benchmarks``: its commands and options, and ``moe`` from end to end, on CPU with a tiny size."""

import argparse

import pytest
import torch

from benchmarks.__main__ import COMMANDS, main, parse
from benchmarks.environment import commit_of, environment
from benchmarks.records import read


def test_the_command_writes_a_record_of_every_case(tmp_path, capsys, monkeypatch):
    """Ceilings, cases in both skews, absent peers, parts."""
    monkeypatch.setattr("benchmarks.ceilings.measure", lambda *_: [])  # which takes a second
    path = tmp_path / "records.jsonl"
    arguments = "--preset medvlmoe-tiny --tokens 8 --skew uniform zipf --device cpu --dtype fp32 --seconds 0"
    assert not main(["moe", *arguments.split(), "--peer", "dense", "moekit-torch", "liger", "--out", str(path)])
    records = read(path)
    cases = [(r.name, r.skew, r.direction) for r in records if r.kind == "case" and r.status == "ok"]
    directions = ("forward", "backward", "forward+backward")
    assert cases == [
        (name, skew, direction)
        for skew in ("uniform", "zipf")
        for name in ("dense", "moekit-torch")
        for direction in directions
    ]
    assert all(r.shape == (8, 256, 256, 8, 2) for r in records)
    assert all(r.of_dense for r in records if r.kind == "case" and r.status == "ok")
    assert [r.status for r in records if r.name == "liger"] == ["absent", "absent"]
    assert {r.name for r in records if r.kind == "stage"} >= {"routing", "plan", "up product", "combine", "kernels"}
    about = records[0].environment
    assert set(about) == {"device", "threads", "versions", "commit", "dirty", "date", "command"}
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    output = capsys.readouterr().out
    assert "liger-kernel runs on a GPU only" in output
    assert "of dense" in output


def test_layers_may_take_turns_and_be_timed_by_the_processor(tmp_path, monkeypatch, capsys):
    """Each record says by which clock; layers that are timed one after the other have the clock's only."""
    monkeypatch.setattr("benchmarks.ceilings.measure", lambda *_: [])
    path = tmp_path / "records.jsonl"
    options = "--preset cpu-small-1 --direction forward --device cpu --dtype fp32 --no-stages"
    arguments = ["moe", *options.split()]
    arguments += ["--seconds", "0", "--peer", "moekit-layer", "moekit-layer-no-stats", "--processor-time"]
    assert not main([*arguments, "--in-turn", "--out", str(path)])
    records = read(path)
    assert [record.name for record in records] == ["moekit-layer", "moekit-layer-no-stats"]
    assert all(record.remark.endswith("; time of the processor, not of the clock") for record in records)
    assert main(arguments) == 2
    assert "--processor-time needs --in-turn" in capsys.readouterr().err


def test_a_folder_without_git_has_no_commit(tmp_path):
    """And counts as changed."""
    assert commit_of(tmp_path) == ("unknown", True)


def test_the_environment_is_plain_json():
    """It goes into every record."""
    about = environment(torch.device("cpu"))
    assert isinstance(about["device"], str)
    assert about["threads"] == torch.get_num_threads()


MINIMAL = {
    "compare": ["old.jsonl", "new.jsonl"],
    "curves": ["--out", "curves.jsonl"],
    "gpu": ["--out", "folder"],
    "tune": ["--out", "tiles.json"],
}
COMMON = {"--device", "--dtype", "--seconds", "--budget", "--out", "--preset", "--dim", "--batch"}


def options_of(name: str) -> dict[str, argparse.Action]:
    """The options of a command by their spelling."""
    module = parse([name, *MINIMAL.get(name, [])])[1]
    parser = argparse.ArgumentParser()
    module.add_options(parser)
    return {
        flag: action for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    """Its help names the command and what it does."""
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert f"usage: python -m benchmarks {name}" in output
    assert f"``python -m benchmarks {name}" in output


def test_the_list_of_commands_is_in_the_help_and_a_wrong_one_is_named(capsys):
    """Without importing any of them."""
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f"    {name} " in output or f"    {name}\n" in output for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["faster"])
    assert "invalid choice: 'faster'" in capsys.readouterr().err


def test_an_option_means_the_same_in_every_command():
    """One spelling and one type; what takes several values is named for one of them."""
    seen: dict[str, set[object]] = {}
    for name in COMMANDS:
        for flag, action in options_of(name).items():
            assert action.nargs != "+" or not flag.endswith("s"), f"{flag} takes several, and is named for one"
            seen.setdefault(flag, set()).add(action.type)
    assert seen.keys() >= COMMON
    assert {flag: types for flag, types in seen.items() if len(types) > 1} == {}


def test_a_mistake_in_the_options_is_reported_without_a_traceback(monkeypatch, capsys):
    """And gives status 2."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["tune", "--out", "tiles.json"]) == 2
    assert capsys.readouterr().err == (
        "python -m benchmarks tune: times kernels, so it needs a GPU; the committed table serves without one.\n"
    )


def test_records_name_the_command_that_made_them(monkeypatch):
    """By the module, not by a path."""
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/__main__.py", "moe", "--preset", "cpu"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment(torch.device("cpu"))["command"] == "OMP_NUM_THREADS=2 python -m benchmarks moe --preset cpu"
