"""Prediction reads tables, notes and images by the rules of training."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import predict, train
from recipes.medvlmoe.config import Config, tiny
from recipes.shared.runs import read_json
from tests.recipes.data.dicom_files import image_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a table of them whose reports have sections, and a run that reads the indication."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,report,split,A,B"]
    for number in range(24):
        bright, febrile = (int(label) for label in rng.integers(0, 2, 2))
        image = rng.integers(0, 60, (64, 64), dtype=np.uint8)
        image[:20, :20] += bright * 150
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        report = f"FINAL REPORT\n Indication: patient {'febrile' if febrile else 'well'} today\n\n Impression: none"
        split = ("train", "train", "val", "test")[number % 4]
        rows.append(f'images/{number}.png,"{report}",{split},{bright},{febrile}')
    (folder / "tables").mkdir()
    (folder / "tables" / "set.csv").write_text("\n".join(rows) + "\n")
    base = tiny()
    manifest = replace(
        base.data.manifest,
        image_root=folder,
        text_column="report",
        text_section="indication",
        label_columns=("A", "B"),
    )
    config = replace(
        base,
        out=folder / "run",
        data=replace(base.data, data=str(folder / "tables" / "set.csv"), manifest=manifest),
        model=replace(base.model, image_size=64, dim=32, num_heads=2, num_experts=2, expert_hidden_dim=32),
        train=replace(base.train, epochs=1, batch_size=8, accelerator="cpu"),
    )
    train.main(config)
    assert Config.from_json(read_json(folder / "run" / "config.json")) == config
    return folder


def probs(folder, **arguments):
    table = predict.main(folder / "run", **arguments)
    return table.filter(like="prob:").to_numpy()


def write_table(folder, *lines):
    (folder / "new.csv").write_text("\n".join(lines) + "\n")
    return folder / "new.csv"


def test_a_note_without_headers_is_used_whole(folder):
    image = [folder / "images" / "3.png"]
    note = probs(folder, images=image, text="patient febrile today")
    for report in ("INDICATION: patient febrile today", "Indication: patient febrile today\nImpression: none"):
        np.testing.assert_allclose(probs(folder, images=image, text=report), note)
    assert not np.allclose(probs(folder, images=image), note, atol=1e-4)
    csv = write_table(folder, "image,report", "images/3.png,patient febrile today", "images/3.png,nan")
    both = probs(folder, csv=csv)
    np.testing.assert_allclose(both[:1], note, atol=1e-5)
    np.testing.assert_allclose(both[1:], probs(folder, images=image), atol=1e-5)


def test_a_report_without_the_section_is_refused(folder):
    with pytest.raises(ValueError, match=r"section 'indication': 0 of 1 texts have this .*'impression' \(1\)"):
        predict.main(folder / "run", images=[folder / "images" / "3.png"], text="Impression: none")


def test_some_reports_without_the_section_are_warned_of(folder):
    rows = ["images/3.png,Impression: none", "images/3.png,Indication: patient febrile today", "images/3.png,"]
    with pytest.warns(UserWarning, match="1 of 2 texts have headers but no section 'indication'"):
        both = probs(folder, csv=write_table(folder, "image,report", *rows))
    np.testing.assert_allclose(both[0], both[2], atol=1e-6)
    assert not np.allclose(both[0], both[1], atol=1e-4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,lateral,report", "images/0.png,images/1.png,febrile, coughing"], r"row 1 \(line 2\) has 4 fields"),
        (["image,lateral,report", "images/0.png,febrile"], r"row 1 \(line 2\) has 2 fields"),
        (["image,report"], r"new\.csv: holds a header but no rows"),
        (["image,report,image", "images/0.png,note,images/1.png"], r"has the column 'image' 2 times"),
        (["image,report", ","], r"column 'image', row 1 is blank"),
        (
            ["image,report", "images/0.png,a", "images/99.png,b"],
            r"1 of 2 images are missing .*99\.png.*--image-root.*, or remove such rows\.",
        ),
    ],
)
def test_tables_that_do_not_fit_their_header_are_refused(folder, lines, message):
    with pytest.raises(ValueError, match=message):
        predict.main(folder / "run", csv=write_table(folder, *lines))


@pytest.mark.filterwarnings("ignore:.*is blank in every row")
def test_images_may_lie_in_another_folder_than_the_table(folder, tmp_path):
    expected = probs(folder, images=[folder / "images" / "3.png"])
    csv = write_table(tmp_path, "image,report", "images/3.png,")
    np.testing.assert_allclose(probs(folder, csv=csv, image_root=folder), expected, atol=1e-6)
    out = str(tmp_path / "out.csv")
    cli.main(["predict", str(folder / "run"), "--csv", str(csv), "--image-root", str(folder), "--out", out])
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith(str(folder / "images" / "3.png"))
    with pytest.raises(ValueError, match=r"image_root \(--image-root\) is where the paths of a csv begin"):
        predict.main(folder / "run", images=[folder / "images" / "3.png"], image_root=folder)


@pytest.mark.filterwarnings("ignore:.*is blank in every row")
def test_dicom_files_without_a_header_are_read_when_forced(folder, tmp_path):
    image = np.asarray(Image.open(folder / "images" / "3.png"))
    image_dataset(image).save_as(tmp_path / "old.dcm", implicit_vr=True, little_endian=True)
    with pytest.raises(ValueError, match=r"old\.dcm': it has no DICOM preamble.*--force-dicom"):
        predict.main(folder / "run", images=[tmp_path / "old.dcm"])
    forced = probs(folder, images=[tmp_path / "old.dcm"], force_dicom=True)
    np.testing.assert_allclose(forced, probs(folder, images=[folder / "images" / "3.png"]), atol=1e-6)
    csv = write_table(tmp_path, "image,report", "old.dcm,")
    np.testing.assert_allclose(probs(folder, csv=csv, force_dicom=True), forced, atol=1e-6)


def test_a_run_without_texts_refuses_one(folder, tmp_path):
    config = Config.from_json(read_json(folder / "run" / "config.json"))
    data = replace(config.data, use_text=False)
    train.main(replace(config, out=tmp_path / "run", data=data))
    with pytest.raises(ValueError, match=r"text: .*run was trained without texts and reads none, so leave it out"):
        predict.main(tmp_path / "run", images=[folder / "images" / "3.png"], text="note")


def test_a_section_that_no_report_has_stops_the_training(folder, tmp_path):
    config = Config.from_json(read_json(folder / "run" / "config.json"))
    manifest = replace(config.data.manifest, text_section="technique")
    config = replace(config, out=tmp_path / "run", data=replace(config.data, manifest=manifest))
    with pytest.raises(ValueError, match=r"--text-section 'technique': 0 of 12 texts have this section"):
        train.main(config)
