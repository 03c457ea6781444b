"""Sets of chest radiographs in their own layouts: what is read from whole folders."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from recipes.data.chest.chestxray14 import CLASSES as NIH
from recipes.data.chest.chestxray14 import chestxray14_source
from recipes.data.chest.chexpert import CLASSES as CHEXPERT
from recipes.data.chest.chexpert import chexpert_source
from recipes.data.chest.mimic_cxr import CLASSES as MIMIC
from recipes.data.chest.mimic_cxr import mimic_cxr_source
from recipes.data.chest.openi import CLASSES as OPENI
from recipes.data.chest.openi import openi_source
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.sets import split_name
from recipes.data.tables.sections import section_of, sections_of
from tests.recipes import chest_folders as folders

PLAIN = ChestOptions()


def groups(source):
    return [set(split.groups) for _, split in source.splits()]


def one_label(split, id, classes, name):
    return split.labels[split.ids.index(id), classes.index(name)]


@pytest.mark.parametrize("old", [False, True], ids=["v2020", "2017"])
def test_chestxray14_in_both_forms_of_its_table(tmp_path, old):
    root = folders.chestxray14(tmp_path, old=old)
    source = chestxray14_source(root, PLAIN)
    train, val, test = groups(source)
    assert test == {"9", "10"}
    assert train | val == {str(n) for n in range(1, 9)}
    assert len(val) == 1
    assert (source.task, source.classes) == ("multi-label", NIH)
    assert one_label(source.test, "00000009_000.png", NIH, "Effusion") == 1
    assert one_label(source.test, "00000009_000.png", NIH, "Mass") == 1
    assert source.test.labels[source.test.ids.index("00000009_000.png")].sum() == 2
    no_finding = next(
        split.labels[split.ids.index("00000008_000.png")]
        for _, split in source.splits()
        if "00000008_000.png" in split.ids
    )
    assert no_finding.tolist() == [0] * 14
    age = "058Y" if old else "58"
    assert dict(source.test.attributes) == {"sex": ("M",) * 4, "age": (age,) * 4, "view": ("PA", "AP") * 2}
    for _, split in source.splits():
        for study in split:
            assert study.image.shape == (24, 20)
            assert study.image.std() > 60


def test_chexpert_policies_and_patients(tmp_path):
    root = folders.chexpert_folder(tmp_path / "renamed")
    cells = {}
    for uncertain in ("ignore", "zeros", "ones", "per-label"):
        source = chexpert_source(root, ChestOptions(uncertain=uncertain))
        labels = {id: row for _, split in source.splits() for id, row in zip(split.ids, split.labels, strict=True)}
        name = "train/patient00002/study1/view1_frontal.jpg"
        cells[uncertain] = [labels[name][CHEXPERT.index(finding)] for finding in ("Edema", "Cardiomegaly", "Fracture")]
    np.testing.assert_equal(cells["ignore"], [np.nan, np.nan, 0])
    assert cells["zeros"] == [0, 0, 0]
    assert cells["ones"] == [1, 1, 0]
    assert cells["per-label"] == [1, 0, 0]
    blank = chexpert_source(root, ChestOptions(blank="ignore"))
    assert np.isnan(blank.train.labels[:, CHEXPERT.index("Fracture")]).all()
    train, val, test = groups(source)
    assert test == {f"patient{n:05d}" for n in range(12, 16)}
    assert train | val == {f"patient{n:05d}" for n in range(12)}
    assert source.test[0].image.shape == (24, 20)
    attributes = source.test.attributes
    assert (set(attributes["sex"]), set(attributes["age"])) == ({"Female"}, {"68"})
    assert sorted(set(attributes["view"])) == ["AP", "Lateral"]


def test_per_label_leaves_other_findings_unknown(tmp_path):
    root = folders.chexpert_folder(tmp_path / "set")
    text = (root / "train.csv").read_text()
    row = folders.chexpert_row(0, "frontal", {"Edema": "1.0", "Cardiomegaly": "-1.0"})
    assert row in text
    changed = folders.chexpert_row(0, "frontal", {"Fracture": "-1.0", "Consolidation": "-1.0", "Atelectasis": "-1"})
    (root / "train.csv").write_text(text.replace(row, changed))
    source = chexpert_source(root, ChestOptions(uncertain="per-label", official_splits=False))
    labels = {id: row for _, split in source.splits() for id, row in zip(split.ids, split.labels, strict=True)}
    one = labels["train/patient00000/study1/view1_frontal.jpg"]
    known = [one[CHEXPERT.index(name)] for name in ("Fracture", "Consolidation", "Atelectasis", "Edema")]
    np.testing.assert_equal(known, [np.nan, 0, 1, 0])


def test_chexpert_with_the_later_test_set_validates_on_valid(tmp_path):
    root = folders.chexpert_folder(tmp_path / "set")
    path = "test/patient90000/study1/view1_frontal.jpg"
    folders.draw(root / path, 1)
    (root / "test.csv").write_text(f"Path,{','.join(CHEXPERT)}\n{path},{','.join(['0'] * 14)}\n")
    train, val, test = groups(chexpert_source(root, PLAIN))
    assert (len(train), len(val), test) == (12, 4, {"patient90000"})


def test_views_of_chexpert(tmp_path):
    root = folders.chexpert_folder(tmp_path / "set", ending=".png")
    source = chexpert_source(root, ChestOptions(views=("frontal",)))
    assert all(id.endswith("frontal.jpg") for _, split in source.splits() for id in split.ids)
    assert "views frontal: 16 of 32 images" in source.notes
    assert source.train.paths[0].endswith("frontal.png")
    lateral = chexpert_source(root, ChestOptions(views=("Lateral",)))
    assert len(lateral.test) == 4
    with pytest.raises(ValueError, match=r"no row of .*train\.csv has the view 'LL'. It has AP \(16\), Lateral \(16\)"):
        chexpert_source(root, ChestOptions(views=("LL",)))


@pytest.mark.parametrize(("ending", "compressed"), [(".jpg", True), (".dcm", False), (".tif", True)])
def test_mimic_cxr_joins_its_tables_and_reports(tmp_path, ending, compressed):
    root = folders.mimic_cxr_folder(tmp_path, ending=ending, compressed=compressed)
    source = mimic_cxr_source(root, ChestOptions(uncertain="per-label"))
    assert [len(split) for _, split in source.splits()] == [12, 4, 4]
    assert groups(source)[2] == {"10008000", "10009000"}
    assert one_label(source.test, "00000009-pa", MIMIC, "Edema") == 1
    assert one_label(source.test, "00000009-pa", MIMIC, "Atelectasis") == 1
    assert one_label(source.test, "00000009-pa", MIMIC, "Fracture") == 0
    assert source.test[0].image.shape == (24, 20)
    texts = sections_of(source.test.texts, "impression,findings,last_paragraph")
    assert texts == ["No acute process 8."] * 2 + ["The lungs of 9 are clear."] * 2
    assert mimic_cxr_source(root, ChestOptions(texts=False)).train.texts == (None,) * 12
    frontal = mimic_cxr_source(root, ChestOptions(views=("frontal",)))
    assert frontal.test.ids == ("00000008-pa", "00000009-pa")


def test_mimic_cxr_counts_studies_without_labels_and_reports(tmp_path):
    root = folders.mimic_cxr_folder(tmp_path, compressed=False)
    csv = root / "mimic-cxr-2.0.0-chexpert.csv"
    csv.write_text("".join(line + "\n" for line in csv.read_text().splitlines() if ",50000000," not in f",{line},"))
    (root / "files/p10/p10001000/s50000001.txt").unlink()
    source = mimic_cxr_source(root, PLAIN)
    assert np.isnan(source.train.labels[source.train.ids.index("00000000-pa")]).all()
    assert "2 of 20 images are of a study that mimic-cxr-2.0.0-chexpert.csv lacks: labels unknown" in source.notes
    assert "1 of 10 studies have no report" in source.notes
    for report in root.rglob("*.txt"):
        report.unlink()
    assert "no reports beside the images: studies are without text" in mimic_cxr_source(root, PLAIN).notes


@pytest.mark.parametrize("archive", [False, True])
def test_openi_reads_headings_and_sections(tmp_path, archive):
    source = openi_source(folders.openi_folder(tmp_path, archive=archive), PLAIN)
    studies = {study.id: study for _, split in source.splits() for study in split}
    assert len(studies) == 18
    one, two, three, eleven = (studies[f"CXR{n}_IM-0001-1001"] for n in (1, 2, 3, 11))
    assert [OPENI[i] for i in np.flatnonzero(one.labels)] == ["Atelectasis", "Opacity"]
    assert [OPENI[i] for i in np.flatnonzero(two.labels)] == ["Cardiomegaly"]
    assert three.labels.tolist() == [0] * len(OPENI)
    assert np.isnan(eleven.labels).all()
    assert one.text == "COMPARISON: None.\nFINDINGS: Lungs of 1 are clear.\nIMPRESSION: Ok."
    assert section_of(one.text, "indication,findings") == "Lungs of 1 are clear."
    assert "1 reports have no image" in source.notes
    assert "2 of 18 images are not indexed: their labels are unknown" in source.notes


def test_the_order_of_fallbacks_decides():
    report = " FINDINGS:  Clear.\n \n IMPRESSION:  Normal.\n \n Dr. Smith was told."
    assert section_of(report, "findings, impression") == "Clear."
    assert section_of(report, "impression,findings") == "Normal. Dr. Smith was told."
    assert section_of(report, "indication,last_paragraph") == "Dr. Smith was told."
    assert section_of("One line.", "last_paragraph") == "One line."
    assert section_of("A\n\nIMPRESSION: B", "last_paragraph") == "B"
    assert section_of(report, "indication,technique") is None
    assert sections_of(["plain note"], "findings,impression", whole_notes=True) == ["plain note"]
    with pytest.raises(ValueError, match="text_section must name a section"):
        section_of(report, "findings,")


def test_names_and_folders():
    assert split_name("chexpert:/data/x:y") == ("chexpert", "/data/x:y")
    assert split_name("openi:~/x") == ("openi", str(Path.home() / "x"))
    assert split_name("C:/data.csv") is None
    assert split_name("breastmnist") is None
    with pytest.raises(ValueError, match=r"data: mimic-cxr needs its folder, mimic-cxr:FOLDER"):
        split_name("mimic-cxr")


def test_drawn_splits_keep_patients_together(tmp_path):
    root = folders.chestxray14(tmp_path)
    for name in ("train_val_list.txt", "test_list.txt"):
        (root / name).unlink()
    with pytest.raises(ValueError, match=r"lacks train_val_list\.txt.*official_splits=False"):
        chestxray14_source(root, PLAIN)
    source = chestxray14_source(root, ChestOptions(official_splits=False))
    train, val, test = groups(source)
    assert (len(train), len(val), len(test)) == (7, 1, 2)
    assert "splits drawn by patient with seed 0 and fractions (0.7, 0.1, 0.2)" in source.notes


@pytest.mark.parametrize("prefix", ["files/", "mimic-cxr-reports/files/"])
def test_reports_of_mimic_cxr_are_read_out_of_their_archive(tmp_path, prefix):
    expected = mimic_cxr_source(folders.mimic_cxr_folder(tmp_path / "unpacked"), ChestOptions())
    root = folders.mimic_cxr_folder(tmp_path / "zipped")
    with ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(root.rglob("*.txt")):
            archive.write(path, prefix + path.relative_to(root / "files").as_posix())
            path.unlink()
    source = mimic_cxr_source(root, ChestOptions())
    assert any(source.train.texts)
    for name, split in expected.splits():
        assert dict(source.splits())[name].texts == split.texts
    (root / "mimic-cxr-reports.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"cannot read the reports in .*Get the archive anew"):
        mimic_cxr_source(root, ChestOptions())
