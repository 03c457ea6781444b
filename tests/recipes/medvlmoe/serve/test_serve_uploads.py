"""Uploads that are no images crash nothing and leave nothing behind."""

import os
from pathlib import Path

import numpy as np
import pytest

from recipes.medvlmoe.serve.uploads import UploadFolder
from tests.recipes.medvlmoe.serve.bad_uploads import KINDS, bad_uploads, sound_image
from tests.recipes.medvlmoe.serve.endpoint import Endpoint

pytestmark = pytest.mark.slow


def files_below(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_two_hundred_bad_uploads_are_refused_and_leave_nothing(server, trained_run):
    endpoint, run = Endpoint(server.url, "bad"), files_below(trained_run)
    checkout = {path.name for path in Path.cwd().iterdir()}
    wrong, kinds, names_refused, most_bytes = [], set(), 0, 0
    for upload in bad_uploads(seed=0, count=200, max_bytes=2**20):
        status, content = endpoint.upload(upload.name, upload.data)
        shown = endpoint.take(content)[-1] if status == 200 else content
        most_bytes = max(most_bytes, sum(files_below(server.temporary).values()))
        names_refused += "file name" in shown
        refused = status in (400, 413) or "cannot be read" in shown
        kinds.add((upload.kind, refused))
        if refused < upload.refused or (not refused and "predicting" not in shown):
            wrong.append((upload.kind, upload.name, status, shown))
    assert not wrong
    assert {kind for kind, _ in kinds} == {kind for kind, _ in KINDS}
    assert ("odd name", False) in kinds
    # gradio leaves what it refuses by its name; the folder's age limit removes that, and its size limit bounds it.
    assert len(files_below(server.temporary)) <= names_refused <= 20
    assert most_bytes <= 8 * 2**20
    assert files_below(trained_run) == run
    assert {path.name for path in Path.cwd().iterdir()} == checkout
    assert server.process.poll() is None


def test_the_server_goes_on_afterwards(server):
    endpoint = Endpoint(server.url, "good")
    _, path = endpoint.upload("scan.png", sound_image(np.random.default_rng(1)))
    assert "predicting" in endpoint.take(path)[-1]
    (shown,) = endpoint.call("predict", None, "71-year-old man with fever")
    assert "Calibrated probabilities" in shown


@pytest.mark.parametrize("path", ["/etc/passwd", "metrics.json", "http://127.0.0.1:1/x.png", "..", "\0"])
def test_files_that_were_not_uploaded_are_not_read(server, trained_run, path):
    path = str(trained_run / path) if path == "metrics.json" else path
    assert Endpoint(server.url, "thief").take(path) is None
    assert (trained_run / "metrics.json").is_file()


def test_a_full_folder_takes_no_more_and_old_files_go(tmp_path):
    folder = UploadFolder(tmp_path / "uploads", max_bytes=1000, max_age=60)
    (folder.folder / "a").mkdir()
    (folder.folder / "a" / "x.png").write_bytes(bytes(900))
    assert folder.has_room(100)
    assert not folder.has_room(101)
    for path in (folder.folder / "a" / "x.png", folder.folder / "a"):
        os.utime(path, (1, 1))
    assert folder.has_room(1000)
    assert not files_below(folder.folder)
    folder.remove()
    assert not folder.folder.exists()
