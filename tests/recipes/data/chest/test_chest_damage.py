"""Sets of chest radiographs that are damaged: the error names the file and what to do."""

import pytest

from recipes.data.chest.chestxray14 import chestxray14_source
from recipes.data.chest.chexpert import chexpert_source
from recipes.data.chest.mimic_cxr import mimic_cxr_source
from recipes.data.chest.openi import openi_source
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.sets import CHEST_SETS
from tests.recipes import chest_folders as folders

PLAIN = ChestOptions()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", CHEST_SETS)
def test_a_folder_that_is_none(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: '.*nowhere' is no folder. .*{name}:FOLDER \(--data\)"):
        CHEST_SETS[name](tmp_path / "nowhere", PLAIN)


@pytest.mark.parametrize("name", ["chestxray14", "openi"])
@pytest.mark.parametrize("option", [{"uncertain": "ones"}, {"blank": "ignore"}])
def test_options_of_labels_that_a_set_lacks(tmp_path, name, option):
    with pytest.raises(ValueError, match=rf"{name} has no uncertain and no blank labels"):
        CHEST_SETS[name](tmp_path, ChestOptions(**option))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "Data_Entry_2017_v2020.csv").unlink(), r"holds none of Data_Entry_2017_v2020\.csv, Data_Entry"),
        (lambda r: edit(r / "Data_Entry_2017_v2020.csv", "|Mass", "|Moss"), r"'Moss' is none of the classes"),
        (lambda r: edit(r / "Data_Entry_2017_v2020.csv", "Patient ID", "Patient"), r"lacks the column 'Patient ID'"),
        (
            lambda r: edit(r / "train_val_list.txt", "00000001_000.png\n", ""),
            r"1 of 20 images are in neither .*000\.png",
        ),
        (
            lambda r: edit(r / "test_list.txt", "00000009_000.png", "00000001_000.png"),
            r"lists '00000001_000.png', which",
        ),
        (
            lambda r: edit(r / "test_list.txt", "09_001.png", "09_000.png"),
            r"test_list\.txt: lists '00000009_000.png' tw",
        ),
        (lambda r: (r / "test_list.txt").write_text(" \n"), r"test_list\.txt: is empty"),
        (lambda r: (r / "test_list.txt").write_bytes(b"\xff\xfe"), r"test_list\.txt: is no text in UTF-8"),
        (lambda r: (r / "images" / "00000010_000.png").unlink(), r"1 of 20 images are missing.*00000010_000\.png"),
        (lambda r: (r / "images" / "00000010_000.png").write_bytes(b""), r"1 of 20 images are missing or empty"),
        (
            lambda r: edit(r / "Data_Entry_2017_v2020.csv", ",0,9,58", ",0,1,58"),
            r"chestxray14: groups must not cross splits, but 1 do: '1'",
        ),
        (
            lambda r: edit(r / "Data_Entry_2017_v2020.csv", "00000002_000.png", "00000001_000.png"),
            r"rows 1 and 3 both list the image '00000001_000\.png'",
        ),
    ],
)
def test_damaged_chestxray14(tmp_path, damage, message):
    root = folders.chestxray14(tmp_path)
    damage(root)
    with pytest.raises(ValueError, match=message):
        chestxray14_source(root, PLAIN)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "valid.csv").unlink(), r"holds none of valid\.csv"),
        (lambda r: edit(r / "train.csv", "patient00003/", "p3/"), r"train\.csv: column 'Path', row 7: expected a path"),
        (lambda r: edit(r / "train.csv", "-1.0", "-2"), r"train\.csv: column .*: a label must be 1, 0, -1"),
        (lambda r: edit(r / "train.csv", "Frontal/Lateral", "Frontal"), r"lacks the column 'Frontal/Lateral'"),
        (lambda r: (r / "train/patient00003/study1/view1_frontal.jpg").unlink(), r"1 of 32 images are missing"),
        (lambda r: (r / "train.csv").write_text("Path\n"), r"lacks the column"),
    ],
)
def test_damaged_chexpert(tmp_path, damage, message):
    root = folders.chexpert_folder(tmp_path / "set")
    damage(root)
    with pytest.raises(ValueError, match=message):
        chexpert_source(root, PLAIN)


def test_a_truncated_image_is_skipped_and_counted_or_named_when_it_is_read(tmp_path):
    root = folders.chexpert_folder(tmp_path / "set")
    image = root / "valid/patient00012/study1/view1_frontal.jpg"
    image.write_bytes(image.read_bytes()[:200])
    source = chexpert_source(root, PLAIN)
    with pytest.raises(ValueError, match=r"cannot read the image .*patient00012"):
        source.test[0]
    skipped = chexpert_source(root, ChestOptions(on_bad_image="skip"))
    assert len(skipped.test) == 7
    assert any(
        note.startswith("skipped 1 of 32 images that cannot be read: valid/patient00012") for note in skipped.notes
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "mimic-cxr-2.0.0-split.csv").unlink(), r"holds none of mimic-cxr-2\.0\.0-split\.csv"),
        (
            lambda r: edit(r / "mimic-cxr-2.0.0-split.csv", "validate", "valid"),
            r"row 13: a split must be .* got 'valid'",
        ),
        (
            lambda r: edit(r / "mimic-cxr-2.0.0-split.csv", "00000000-pa,", "x,"),
            r"lacks 1 of the 20 images of .*00000000",
        ),
        (
            lambda r: edit(r / "mimic-cxr-2.0.0-chexpert.csv", ",50000001,", ",50000000,"),
            r"rows 1 and 2 both label the st",
        ),
        (
            lambda r: edit(r / "mimic-cxr-2.0.0-chexpert.csv", ",5000", ",6000"),
            r"labels none of the 20 images' studies",
        ),
        (lambda r: edit(r / "mimic-cxr-2.0.0-metadata.csv", "00000000-pa,", ","), r"column 'dicom_id', row 1 is blank"),
        (
            lambda r: (r / "files/p10/p10000000/s50000000.txt").write_bytes(b"\xff"),
            r"cannot read the report .*0000\.txt",
        ),
        (lambda r: (r / "files/p10/p10000000/s50000000/00000000-pa.jpg").unlink(), r"1 of 20 images are missing"),
        (lambda r: edit(r / "mimic-cxr-2.0.0-metadata.csv", "10009000", "10000000"), r"images are missing"),
    ],
)
def test_damaged_mimic_cxr(tmp_path, damage, message):
    root = folders.mimic_cxr_folder(tmp_path, compressed=False)
    damage(root)
    with pytest.raises(ValueError, match=message):
        mimic_cxr_source(root, PLAIN)


def test_a_truncated_archive_of_tables(tmp_path):
    root = folders.mimic_cxr_folder(tmp_path)
    csv = root / "mimic-cxr-2.0.0-split.csv.gz"
    csv.write_bytes(csv.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot read the csv .*split\.csv\.gz"):
        mimic_cxr_source(root, PLAIN)


def remove_images(root):
    for image in (root / "NLMCXR_png").iterdir():
        image.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_images, r"holds no images CXR\*\.png.*NLMCXR_png\.tgz"),
        (lambda r: (r / "NLMCXR_png/CXR1_IM-0001-1001.png").unlink(), r"1 of 18 images are missing"),
        (lambda r: (r / "ecgen-radiology/2.xml").write_text("<eCitation>"), r"cannot read the XML file .*2\.xml"),
        (lambda r: edit(r / "ecgen-radiology/2.xml", "CXR2_", "CXR4_"), r"both list the image 'CXR4_IM"),
        (lambda r: [p.write_text("<a/>") for p in (r / "ecgen-radiology").iterdir()], r"no report names an image"),
        (lambda r: (r / "ecgen-radiology").rename(r / "elsewhere"), r"holds no reports, neither ecgen-radiology"),
    ],
)
def test_damaged_openi(tmp_path, damage, message):
    root = folders.openi_folder(tmp_path)
    damage(root)
    with pytest.raises(ValueError, match=message):
        openi_source(root, PLAIN)


def test_a_truncated_archive_of_reports(tmp_path):
    root = folders.openi_folder(tmp_path, archive=True)
    archive = root / "NLMCXR_reports.tgz"
    archive.write_bytes(archive.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cannot read the reports in .*NLMCXR_reports\.tgz"):
        openi_source(root, PLAIN)


def test_openi_names_no_views(tmp_path):
    with pytest.raises(ValueError, match="views: openi names no views, so leave it out"):
        openi_source(folders.openi_folder(tmp_path), ChestOptions(views=("frontal",)))
