"""Errors of MedMoE's stages name the option of the command line that mends them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from recipes.medmoe.__main__ import main, parse_pretrain
from recipes.medmoe.data.labelled_sets import open_sets
from recipes.medmoe.data.sources import build_source
from recipes.medmoe.zero_shot.prompt_files import load_prompts


@pytest.fixture
def csv(tmp_path):
    rows = ["image,text,modality,split,sick"]
    for i, split in enumerate(("train", "val", "test")):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'a note' if i else ''},ct,{split},{i % 2}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs.csv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"row 1 is blank, but a pair needs a text .*--on-missing-text skip"),
        (["--image-column", "picture"], r"lacks the column 'picture'; .* Name the column with --image-column"),
        (["--text-column", "report"], r"lacks the column 'report'; .* Name the column with --text-column"),
        (["--modality-column", "kind"], r"lacks the column 'kind'; .*--modality-column \(None: no kind is known\)"),
        (["--split-column", "fold"], r"lacks the column 'fold'; .*--split-column \(None draws a split\)"),
        (["--group-column", "patient"], r"lacks the column 'patient'; .* Name the column with --group-column"),
        (
            ["--on-missing-text", "skip", "--image-root", "/nowhere"],
            r"images are missing .*--image-root.*--on-bad-image",
        ),
        (["--on-missing-text", "skip"], r"every split needs a study, but train has none.*--split-column None"),
    ],
)
def test_errors_over_tables_of_pairs(csv, options, message):
    with pytest.raises(ValueError, match=message):
        build_source(parse_pretrain(["--preset", "tiny", "--data", str(csv), *options]))


def test_drawn_splits_follow_the_options(csv):
    options = ["--split-column", "None", "--split-seed", "7", "--fractions", "0.4", "0.3", "0.3"]
    config = parse_pretrain(["--data", str(csv), *options])
    assert (config.data.manifest.split_seed, config.data.manifest.fractions) == (7, (0.4, 0.3, 0.3))
    (csv.parent / "pairs.csv").write_text(csv.read_text().replace("0.png,,", "0.png,first,"))
    assert any("seed 7 and fractions (0.4, 0.3, 0.3)" in note for note in build_source(config).notes)


def test_errors_over_tars_sets_and_prompts(tmp_path):
    tar = str(tmp_path / "absent.tar")
    config = parse_pretrain(["--data", tar, "--val-shards", tar, "--test-shards", tar])
    with pytest.raises(ValueError, match=r"1 of 1 tars do not exist: .* \(--data, --val-shards or --test-shards\)"):
        build_source(config)
    session = SimpleNamespace(config=config)
    for arguments, message in (
        ({"names": ("busi", "busi")}, r"name each set once.*\(--set\)"),
        ({"names": ("busi", "phantom-ct")}, r"calls of their own.*\(--set\)"),
        ({"csv": Path("a.csv"), "names": ("busi",)}, r"goes without set and root.*\(--csv, --set, --root\)"),
        ({"names": (), "root": tmp_path}, r"set must name what to open.*\(--set\)"),
        ({}, r"has no phantom sets.*\(--set, --root, --csv\)"),
        ({"csv": Path("a.csv"), "options": ("plane",)}, r"expected name=value.*\(--options\)"),
    ):
        with pytest.raises(ValueError, match=message):
            open_sets(session, **arguments)
    with pytest.raises(ValueError, match=r"there is no prompt file 'absent'.*\(--prompts\)"):
        load_prompts("absent")


@pytest.mark.parametrize("stage", ["zero-shot", "probe", "retrieve", "explain", "report"])
def test_a_folder_that_does_not_exist_ends_every_stage_with_one_line(tmp_path, stage):
    with pytest.raises(SystemExit, match=r"^ValueError: .*absent does not exist: is it the folder of a finished run"):
        main([stage, str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("zero-shot", ["--bootstrap", "-1"], r"bootstrap \(--bootstrap\) must be 0"),
        ("probe", ["--subsets", "0"], r"subsets must be at least 1, got 0 \(--subsets\)"),
        ("explain", ["--count", "0"], r"count must be at least 1, got 0 \(--count\)"),
        ("explain", ["--tolerance", "-1"], r"bootstrap and tolerance \(--bootstrap, --tolerance\) must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_run_is_opened(tmp_path, stage, options, message):
    with pytest.raises(SystemExit, match=message):
        main([stage, str(tmp_path), *options])
