"""Arrays that a run keeps with what they were computed from."""

import subprocess
import sys

import numpy as np

from recipes.shared.kept_arrays import keep, read_kept

WRITER = """
import sys
from pathlib import Path
import numpy as np
from recipes.shared.kept_arrays import keep, read_kept
path, value = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(40):
    keep(path, "key", {"values": np.full(5000, value)})
    kept = read_kept(path, "key")["values"]
    assert kept.shape == (5000,) and kept.min() == kept.max(), kept
"""


def test_arrays_come_back_under_the_key_that_they_were_kept_with(tmp_path):
    path = tmp_path / "folder" / "arrays.npz"
    assert read_kept(path, "a") is None
    keep(path, "a", {"x": np.arange(3), "names": np.array(["p", "q"])})
    kept = read_kept(path, "a")
    assert kept["x"].tolist() == [0, 1, 2]
    assert kept["names"].tolist() == ["p", "q"]
    assert sorted(kept) == ["names", "x"]
    assert read_kept(path, "b") is None
    keep(path, "b", {"x": np.zeros(1)})
    assert read_kept(path, "a") is None
    assert [one.name for one in path.parent.iterdir()] == ["arrays.npz"]


def test_processes_may_keep_the_same_file_side_by_side(tmp_path):
    """Each reads what one of them wrote, whole."""
    path = tmp_path / "arrays.npz"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(value)]) for value in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert [one.name for one in tmp_path.iterdir()] == ["arrays.npz"]
