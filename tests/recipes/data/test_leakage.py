"""What splits share: patients, equal images and nearly equal ones."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data import __main__ as cli
from recipes.data.leakage import find_leaks, find_shared, leak_lines
from recipes.data.tables.studies import manifest_source
from tests.recipes import chest_folders as folders


def smooth(seed):
    """A drawn image of 60 by 50 pixels with large structures."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)
    return Image.fromarray(coarse).resize((50, 60), Image.Resampling.BICUBIC)


def recompressed(image):
    """The same image smaller, darker and as JPEG."""
    file = io.BytesIO()
    image.resize((40, 48)).point(lambda value: value * 0.8 + 9).save(file, "JPEG", quality=60)
    return Image.open(file)


@pytest.fixture
def table(tmp_path):
    """Nine images: 4 copies 0 as another file, 7 is a smaller, darker, compressed 1; patient p2 lies in two splits."""
    images = [smooth(seed) for seed in range(9)]
    images[4], images[7] = images[0], recompressed(images[1])
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.{'tif' if number == 4 else 'png'}")
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    patients = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p2"]
    rows = [
        f"{n}.{'tif' if n == 4 else 'png'},{s},{p},{n % 2}"
        for n, (s, p) in enumerate(zip(splits, patients, strict=True))
    ]
    (tmp_path / "set.csv").write_text("\n".join(["image,split,patient,sick", *rows]) + "\n")
    return tmp_path / "set.csv"


def source_of(table: Path):
    return manifest_source(table, text_column=None, label_columns=["sick"], group_column="patient", allow_crossing=True)


def test_every_planted_pair_is_named_and_no_other(table):
    leaks = find_leaks(source_of(table))
    named = [(leak.kind, leak.first_split, leak.first, leak.second_split, leak.second) for leak in leaks]
    assert named == [
        ("patient", "train", "2.png", "test", "8.png"),
        ("pixels", "train", "0.png", "val", "4.tif"),
        ("twins", "train", "1.png", "test", "7.png"),
    ]
    assert leaks[0].group == "p2"
    assert 0.99 < leaks[2].similarity < 1
    assert find_leaks(source_of(table), similarity=1.0) == leaks[:2]
    assert find_leaks(source_of(table), workers=2) == leaks


@pytest.fixture
def other_table(table, tmp_path):
    """Three images of another set, of which the first set has one as 6; its patients have the same names."""
    folder = tmp_path / "other"
    folder.mkdir()
    recompressed(smooth(6)).save(folder / "a.png")
    smooth(77).save(folder / "b.png")
    smooth(78).save(folder / "c.png")
    (folder / "set.csv").write_text("image,split,patient,ill\na.png,train,p0,1\nb.png,test,p1,0\nc.png,val,p2,0\n")
    return folder / "set.csv"


def test_two_sets_share_images_and_patients_are_not_compared(table, other_table):
    one, other = (
        manifest_source(file, text_column=None, label_columns=[label], group_column="patient", allow_crossing=True)
        for file, label in ((table, "sick"), (other_table, "ill"))
    )
    (leak,) = find_shared(one, other)
    assert leak[:5] == ("twins", "first set test", "6.png", "second set train", "a.png")
    (swapped,) = find_shared(other, replace(one, name="mine"))
    assert swapped[1:5] == ("set train", "a.png", "mine test", "6.png")
    with pytest.raises(ValueError, match=r"similarity must be above 0"):
        find_shared(one, other, similarity=2)


def test_the_command_compares_two_sets(table, other_table, capsys):
    options = ["check", "--data", str(table), "--label-columns", "sick", "--group-column", "patient", "--workers", "0"]
    with pytest.raises(SystemExit) as end:
        cli.main([*options, "--against", f"mine=--data {other_table} --label-columns ill"])
    assert end.value.code == 1
    output = capsys.readouterr().out
    assert "patients" not in output
    assert "set test 6.png and mine train a.png" in output
    assert "mine: train 1, val 1, test 1 images" in output
    with pytest.raises(SystemExit, match=r"\(--against\) takes options that open a data set, and no others"):
        cli.main([*options, "--against", f"mine=--data {other_table} --label-columns ill --workers 0"])
    with pytest.raises(SystemExit, match=r"\(--against\): options of mine cannot be split \(No closing quotation\)"):
        cli.main([*options, "--against", "mine=--data 'x"])
    with pytest.raises(SystemExit, match="leave out --against"):
        cli.main([*options, "--against", "phantom", "--run", str(table.parent)])


def test_lines_are_limited_and_counted(table):
    lines = leak_lines(find_leaks(source_of(table), similarity=0.01), most=1)
    assert lines[:2] == ["patients in two splits: 1", "  patient p2: train 2.png and test 8.png"]
    assert lines[2:4] == ["pairs of equal pixels: 1", "  train 0.png and val 4.tif"]
    assert lines[-1].startswith("  and ")


def test_flat_images_are_equal_or_nothing(table):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(table.parent / "3.png")
    Image.fromarray(np.full((9, 9), 50, np.uint8)).save(table.parent / "8.png")
    assert len(find_leaks(source_of(table), similarity=0.5)) < 40
    assert not [leak for leak in find_leaks(source_of(table)) if leak.kind == "twins" and leak.second == "8.png"]


@pytest.mark.parametrize("similarity", [0, 1.1, float("nan")])
def test_a_similarity_out_of_range(table, similarity):
    with pytest.raises(ValueError, match=r"similarity must be above 0 and at most 1, got .*--similarity"):
        find_leaks(source_of(table), similarity=similarity)


def test_a_damaged_image_is_named(table):
    (table.parent / "5.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"cannot read the image .*5\.png.*on_bad_image='skip'"):
        find_leaks(source_of(table))


def test_the_command_names_the_pairs_and_writes_them(table, tmp_path, capsys):
    options = ["check", "--data", str(table), "--label-columns", "sick", "--group-column", "patient", "--workers", "0"]
    with pytest.raises(SystemExit) as end:
        cli.main([*options, "--out", str(tmp_path / "out" / "pairs.csv")])
    assert end.value.code == 1
    output = capsys.readouterr().out
    assert "set: train 4, val 2, test 3 images" in output
    assert "patient p2: train 2.png and test 8.png" in output
    with (tmp_path / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["patient", "pixels", "twins"]
    with pytest.raises(SystemExit, match=r"cannot write .*Name another file"):
        cli.main([*options, "--out", str(table / "pairs.csv")])


def test_the_command_ends_well_where_splits_share_nothing(capsys):
    cli.main(["check", "--train-studies", "4", "--val-studies", "3", "--test-studies", "3", "--workers", "0"])
    assert "patients in two splits: 0" in capsys.readouterr().out


def test_sets_in_their_own_layout_are_checked_across_patients_too(tmp_path, capsys):
    root = folders.chestxray14(tmp_path)
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace(",0,9,58", ",0,1,58"))
    (root / "images" / "00000010_000.png").write_bytes(
        (root / "images_001" / "images" / "00000002_001.png").read_bytes()
    )
    with pytest.raises(SystemExit):
        cli.main(["check", "--data", f"chestxray14:{root}", "--workers", "0"])
    output = capsys.readouterr().out
    assert "patient 1: train 00000001_000.png and test 00000009_000.png" in output or "patient 1: val" in output
    assert "00000002_001.png and test 00000010_000.png" in output
    with pytest.raises(SystemExit, match=r"ValueError: chexpert: .* is no folder"):
        cli.main(["check", "--data", "chexpert:nowhere"])
