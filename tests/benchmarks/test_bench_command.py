"""``python -m benchmarks.moe`` from end to end, on CPU with a tiny size."""

import torch

from benchmarks import moe
from benchmarks.environment import commit_of, environment
from benchmarks.records import read


def test_the_command_writes_records_of_all_that_it_was_asked_for(tmp_path, capsys, monkeypatch):
    """Ceilings, cases in both skews, absent peers, parts."""
    monkeypatch.setattr("benchmarks.ceilings.measure", lambda *_: [])  # a second of matrix products for nothing
    path = tmp_path / "records.jsonl"
    arguments = "--preset medvlmoe-tiny --tokens 8 --skew uniform zipf --device cpu --dtype fp32 --seconds 0"
    moe.main([*arguments.split(), "--peers", "dense", "moekit-torch", "liger", "--out", str(path)])
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
    said = capsys.readouterr().out
    assert "liger-kernel runs on a GPU only" in said
    assert "of dense" in said


def test_a_folder_without_git_has_no_commit(tmp_path):
    """And counts as changed."""
    assert commit_of(tmp_path) == ("unknown", True)


def test_the_environment_is_plain_json():
    """It goes into every record."""
    about = environment(torch.device("cpu"))
    assert isinstance(about["device"], str)
    assert about["threads"] == torch.get_num_threads()
