import json
import pickle

import numpy as np
import pytest

from recipes.data.pairs import PairSplit
from recipes.data.tars.split import TarSplit


def test_reads_any_sample_of_any_tar(tmp_path, tars):
    split = TarSplit(tars.write_many(tmp_path, [2, 3]), modality="CT")
    assert isinstance(split, PairSplit)
    assert split.texts == ("0-0", "0-1", "1-0", "1-1", "1-2")
    assert split.modalities == ("ct",) * 5
    assert split.ids[3] == f"{tmp_path / 'train-001.tar'}/0001"
    assert split.groups == split.ids
    assert (split.labels.shape, split.labels.dtype, split.notes, split.bad) == ((5, 0), np.float32, (), ())
    for copy in (split, pickle.loads(pickle.dumps(split))):
        for index in (4, 0, 3, -1):
            study = copy[index]
            assert (study.id, study.text, study.modality) == (split.ids[index], split.texts[index], "ct")
            np.testing.assert_array_equal(study.image, np.full((4, 6), int(study.text[-1])))
    assert len(list(split)) == len(split) == 5


def test_bad_samples_are_left_out_and_counted(tmp_path, tars):
    files = [*tars.pair("0"), ("1.png", b"?"), ("1.txt", b"t"), ("2.png", tars.png(1)), *tars.pair("3", group="p")]
    path = tars.write(tmp_path / "s.tar", files)
    split = TarSplit(path)
    assert split.groups == (f"{path}/0", "p")
    assert [bad.key for bad in split.bad] == [f"{path}/1", f"{path}/2"]
    assert len(split.notes) == 1
    assert split.notes[0].startswith("skipped 2 that cannot be read, kept 2 samples (")
    assert f"{path}/1: its image cannot be read: cannot identify its kind" in split.notes[0]
    many = [file for i in range(7) for file in ((f"x{i}.png", b"?"), (f"x{i}.txt", b"t"))]
    split = TarSplit(tars.write(tmp_path / "many.tar", [*tars.pair("0"), *many]))
    assert len(split.bad) == 7
    assert split.notes[0].endswith("; ...)")
    assert "/x4: " in split.notes[0]
    assert "/x5: " not in split.notes[0]


def test_nothing_to_read_is_an_error_that_says_why(tmp_path, tars):
    path = tars.write(tmp_path / "s.tar", [("1.png", b"?"), ("1.txt", b"t")])
    with pytest.raises(ValueError, match=r"no sample of 1 tars can be read \(.*/1: its image cannot be read: cannot"):
        TarSplit(path)
    with pytest.raises(ValueError, match=r"no sample of 1 tars can be read \(they are empty\)"):
        TarSplit(tars.write(tmp_path / "e.tar", []))


def test_a_tar_that_changes_afterwards(tmp_path, tars):
    path = tars.write(tmp_path / "s.tar", tars.pair("0"))
    split = TarSplit(path)
    path.write_bytes(path.read_bytes()[:540])
    with pytest.raises(ValueError, match=r"cannot read the image '.*s\.tar/0'"):
        split[0]
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the tar '.*s\.tar': \[Errno 2\]"):
        split[0]


def test_each_caption_of_an_image_is_a_pair_of_its_group(tmp_path, tars):
    captions = json.dumps({"text": ["a mass", "one lesion"]}).encode()
    path = tars.write(tmp_path / "s.tar", [("0.png", tars.png(3)), ("0.json", captions), *tars.pair("1", shade=4)])
    split = TarSplit(path)
    assert split.ids == (f"{path}/0", f"{path}/0#2", f"{path}/1")
    assert split.texts == ("a mass", "one lesion", "a text")
    assert split.groups == (f"{path}/0", f"{path}/0", f"{path}/1")
    assert [split[row].image[0, 0] for row in range(3)] == [3, 3, 4]
