"""Options of the command line reach the readers of pairs."""

import numpy as np
import pytest
from PIL import Image

from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.config import Config
from recipes.medmoe.data.sources import build_source
from tests.recipes.data.dicom_files import image_dataset


@pytest.fixture
def folder(tmp_path):
    """A table whose paths begin at the folder above it; one image is a DICOM file without preamble."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    rows = ["Path,text,modality,split"]
    for number, split in enumerate(["train", "val", "test"]):
        shade = np.full((8, 8), 40 * number, np.uint8)
        name = f"set/images/{number}.{'dcm' if split == 'test' else 'png'}"
        if split == "test":
            image_dataset(shade).save_as(tmp_path / name, implicit_vr=True, little_endian=True)
        else:
            Image.fromarray(shade).save(tmp_path / name)
        rows.append(f"{name},a text {number},xray,{split}")
    (tmp_path / "set" / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def settings(folder, *more):
    return parse_pretrain(["--data", str(folder / "set" / "train.csv"), "--image-column", "Path", *more])


def test_the_error_names_the_option_and_the_option_does_what_it_says(folder):
    with pytest.raises(ValueError, match=r"3 of 3 images are missing .*Set --image-root to the folder"):
        build_source(settings(folder))
    config = settings(folder, "--image-root", str(folder))
    assert Config.from_json(config.to_json()) == config
    source = build_source(config)
    assert source.val[0].image[0, 0] == 40
    with pytest.raises(ValueError, match=r"no DICOM preamble.*--force-dicom"):
        source.test[0]


def test_old_dicom_files_are_read_when_forced(folder):
    config = settings(folder, "--image-root", str(folder), "--force-dicom")
    assert build_source(config).test[0].image[0, 0] == 80


def test_old_dicom_files_in_tars(tmp_path, folder):
    import tarfile

    for split in ("train", "val", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(folder / "set" / "images" / "2.dcm", f"{split}.dcm")
            (tmp_path / "note.txt").write_text("a note")
            tar.add(tmp_path / "note.txt", f"{split}.txt")
    shards = {name: str(tmp_path / f"{name}.tar") for name in ("train", "val", "test")}
    options = ["--data", shards["train"], "--val-shards", shards["val"], "--test-shards", shards["test"]]
    with pytest.raises(ValueError, match=r"no sample of 1 tars can be read .*no DICOM preamble.*--force-dicom"):
        build_source(parse_pretrain(options))
    source = build_source(parse_pretrain([*options, "--force-dicom"]))
    assert source.test[0].image[0, 0] == 80
    (study,) = source.train.iterate()
    assert study.image[0, 0] == 80
