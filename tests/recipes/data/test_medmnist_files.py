from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.utils
from medmnist import INFO

from recipes.data.medmnist.files import find_file


def find(data, root, *, size=28, download=False):
    return find_file(data, size=size, root=root, download=download, info=INFO)


@pytest.fixture
def downloads(monkeypatch):
    """Replaces the download by one that writes a small archive; collects what was asked for."""
    asked = []

    def write(url, root, filename, md5):
        asked.append((url, filename, md5))
        np.savez(Path(root, filename), train_images=np.zeros(1), train_labels=np.zeros(1))

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", write)
    return asked


def test_a_flag_and_a_size_name_a_file(tmp_path):
    for name in ("breastmnist.npz", "breastmnist_64.npz", "mine_64.npz"):
        (tmp_path / name).touch()
    assert find("breastmnist", tmp_path) == tmp_path / "breastmnist.npz"
    assert find("breastmnist", str(tmp_path), size=64) == tmp_path / "breastmnist_64.npz"
    assert find("mine", tmp_path, size=64) == tmp_path / "mine_64.npz"
    assert find(str(tmp_path / "mine_64.npz"), None) == tmp_path / "mine_64.npz"


def test_the_default_root_is_medmnists_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".medmnist").mkdir()
    (tmp_path / ".medmnist" / "octmnist.npz").touch()
    assert find("octmnist", None) == tmp_path / ".medmnist" / "octmnist.npz"


def test_refuses_files_and_flags_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"data: the file '.*no\.npz' does not exist"):
        find(tmp_path / "no.npz", None)
    with pytest.raises(ValueError, match=r"'brestmnist' is no flag of MedMNIST, and .* one of pathmnist, chestmnist"):
        find("brestmnist", tmp_path, download=True)
    with pytest.raises(
        ValueError,
        match=r"breastmnist_64\.npz' does not exist. Pass download=True, or root,",
    ):
        find("breastmnist", tmp_path, size=64)


def test_downloads_what_is_missing_once(tmp_path, downloads):
    root = tmp_path / "new"
    for _ in range(2):
        assert find("breastmnist", root, size=64, download=True) == root / "breastmnist_64.npz"
    assert downloads == [(INFO["breastmnist"]["url_64"], "breastmnist_64.npz", INFO["breastmnist"]["MD5_64"])]
    assert (root / "breastmnist_64.npz").is_file()


def test_refuses_sizes_that_are_not_offered(tmp_path, downloads):
    with pytest.raises(ValueError, match=r"size: breastmnist comes in \[28, 64, 128, 224\] pixels, got 32"):
        find("breastmnist", tmp_path, size=32, download=True)
    assert downloads == []


@pytest.mark.parametrize("left_behind", [None, b"half a file"])
def test_a_download_that_fails_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, left_behind):
    def fail(url, root, filename, md5):
        if left_behind is not None:
            Path(root, filename).write_bytes(left_behind)
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    with pytest.raises(RuntimeError, match=r"could not download octmnist at size 28. .*save it as '.*octmnist\.npz'"):
        find("octmnist", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
