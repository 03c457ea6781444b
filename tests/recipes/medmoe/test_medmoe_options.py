"""Errors of MedMoE's stages name the option of the command line that mends them."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from recipes.data.arguments import DRAWN_FLAGS
from recipes.data.evaluation.sets import SETS, set_options
from recipes.medmoe.__main__ import main, parse_pretrain
from recipes.medmoe.data.labelled_sets import open_sets
from recipes.medmoe.data.sources import SPELLING, build_source
from recipes.medmoe.zero_shot.prompt_files import load_prompts
from tests.recipes.messages import python_names


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
    with pytest.raises(ValueError, match=message) as raised:
        build_source(parse_pretrain(["--preset", "tiny", "--data", str(csv), *options]))
    assert not python_names(str(raised.value))


def test_drawn_splits_follow_the_options(csv):
    options = ["--split-column", "None", "--split-seed", "7", "--fractions", "0.4", "0.3", "0.3"]
    config = parse_pretrain(["--data", str(csv), *options])
    assert (config.data.manifest.split_seed, config.data.manifest.fractions) == (7, (0.4, 0.3, 0.3))
    (csv.parent / "pairs.csv").write_text(csv.read_text().replace("0.png,,", "0.png,first,"))
    assert any("seed 7 and fractions (0.4, 0.3, 0.3)" in note for note in build_source(config).notes)


def test_errors_over_tars_sets_and_prompts(tmp_path):
    tar = str(tmp_path / "absent.tar")
    config = parse_pretrain(["--data", tar, "--val-shards", tar, "--test-shards", tar])
    with pytest.raises(ValueError, match=r"1 of 1 tars do not exist: .* \(--data, --val-shards, --test-shards\)"):
        build_source(config)
    session = SimpleNamespace(config=config, data=config.data.data)
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


def open_set(name, root=None, *options, csv=None):
    config = parse_pretrain(["--data", "own.csv"])
    session = SimpleNamespace(config=config, data=config.data.data)
    return open_sets(session, names=[name] if name else [], root=root, csv=csv, options=options)


def message_of(call, *arguments, **keywords):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the caller looks at the message
        call(*arguments, **keywords)
    assert not python_names(str(raised.value)), raised.value
    return str(raised.value)


@pytest.mark.parametrize("name", sorted(set(SETS) - {"csv"}))
def test_errors_of_every_labelled_set_are_spelt_as_on_the_command_line(name, tmp_path):
    takes = rf"^options \(--options\): {name} takes {', '.join(set_options(name))}, got colour\.$"
    with pytest.raises(ValueError, match=takes):
        open_set(name, tmp_path, "colour=1")
    absent = message_of(open_set, name, tmp_path / "absent")
    assert absent.startswith(("--root", "--set"))
    assert "absent" in absent
    assert str(tmp_path) in message_of(open_set, name, tmp_path)
    if "on_bad_image" in set_options(name):
        (tmp_path / "table.csv").write_text("image,label\n")
        assert message_of(open_set, name, tmp_path / "table.csv", "on_bad_image=leave")


def test_errors_of_sets_in_their_layouts_name_options(tmp_path):
    table = tmp_path / "chexpert-5x200.csv"
    header = "imgpath,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion,Report Impression"
    table.write_text(f"{header}\na/patient1/1.jpg,1,0,0,0,0,none\n")
    missing = message_of(open_set, "chexpert5x200", tmp_path)
    assert "leave them out (--options on_bad_image=skip). --options image_root=VALUE is the folder" in missing
    lacking = message_of(open_set, "chexpert5x200", tmp_path, "image_column=path")
    assert lacking.endswith("Name the column with --options image_column=VALUE")
    for name in ("train", "valid"):
        (tmp_path / f"{name}-acl.csv").write_text("0001,1\n")
    assert "--options position=VALUE must lie between" in message_of(open_set, "acl", tmp_path, "position=2")
    assert "--options plane=VALUE must be one of" in message_of(open_set, "acl", tmp_path, "plane=oblique")
    unused = message_of(open_set, "acl", tmp_path, "image_root=images")
    assert re.search("^--options image_root=VALUE: .*Leave it out.$", unused)
    (tmp_path / "thyroid_test_fold1.csv").write_text("filename,kind\na.png,benign\n")
    assert "Name the column with --options label_column=VALUE" in message_of(open_set, "thyroid", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["image_column=path"], r"lacks the column 'path'; .* Name the column with --options image_column=VALUE$"),
        (["split_column=fold"], r"Name the column with --options split_column=VALUE \(None draws a split\)"),
        (["only=kind=a"], r"lacks the column 'kind'; .*Name the column with --options only=VALUE"),
        (["only=kind"], r"--options only=VALUE: a condition must be column=value, got 'kind'"),
        (["only=label=c"], r"--options only=VALUE: no row has label=c; 'label' holds"),
        (["split_column=split"], r"a split must be one of .*Name another column with --options split_column=VALUE"),
        ([], r"4 of 4 images are missing .*--options on_bad_image=skip\)\. --options image_root=VALUE is the folder"),
        (["on_bad_image=leave"], r"^--options on_bad_image=VALUE must be one of 'error', 'skip', got 'leave'"),
        (["task=multi-class", "negative_label=a"], r"--options negative_label=VALUE is for multi-label tasks"),
        (["classes=b,c"], r"'a' is none of the classes .*--options classes=VALUE.*--options negative_label=VALUE"),
        (["task=ordinal-regression"], r"lowest first \(--options classes=VALUE\)"),
        (["task=binary-class", "classes=a"], r"needs exactly 2 classes.*--options label_column=VALUE.*task=VALUE"),
        (["splits=draw", "fractions=1,0,0"], r"^--options fractions=VALUE must be three positive numbers"),
        (["modality=ct", "modality_column=image"], r"^give --options modality=VALUE or --options modality_column="),
        (["splits=draw", "group_column=label"], r"groups: at least 3 are needed.*--options split_column=VALUE"),
    ],
)
def test_errors_over_tables_of_labels_name_options(tmp_path, options, message):
    rows = [f"{i}.png,{'ab'[i % 2]},dev" for i in range(4)]
    (tmp_path / "set.csv").write_text("\n".join(["image,label,split", *rows]) + "\n")
    if "splits=draw" in options:
        for i in range(4):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{i}.png")
    assert re.search(message, message_of(open_set, "", None, *options, csv=tmp_path / "set.csv"))


def test_flags_that_errors_name_exist(capsys):
    with pytest.raises(SystemExit):
        parse_pretrain(["--help"])
    text = capsys.readouterr().out
    assert [flag for flag in {*SPELLING.flags.values(), *DRAWN_FLAGS.values()} if flag not in text] == []
