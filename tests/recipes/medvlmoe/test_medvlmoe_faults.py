"""Faults of users and of files end in one line that names the file and the option."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from recipes.data.__main__ import parse_check
from recipes.data.arguments import DRAWN_FLAGS
from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import evaluate, predict, train
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.sources import SPELLING, build_source, texts_of
from recipes.shared import strategy
from recipes.shared.runs import read_json, write_json
from tests.recipes import chest_folders as folders
from tests.recipes.medvlmoe.conftest import SMALL
from tests.recipes.messages import python_names


@pytest.fixture
def run(image_run, tmp_path):
    """A copy of a run, to damage."""
    return Path(shutil.copytree(image_run, tmp_path / "run"))


@pytest.mark.parametrize("option", ["--batch-size", "--epochs"])
def test_no_batch_and_no_epoch_are_refused_before_anything_is_made(note_table, tmp_path, option):
    arguments = ["train", "--data", str(note_table), "--out", str(tmp_path / "run"), *SMALL, option, "0"]
    with pytest.raises(SystemExit, match=rf"^ValueError: .*\({option}\) must be at least 1, got 0"):
        cli.main(arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_training(note_table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written to .*: give another --out"):
        train.main(parse_train(["--data", str(note_table), "--out", str(tmp_path / "file" / "run"), *SMALL]))


def test_outputs_that_cannot_be_written_are_refused_before_the_model_runs(
    image_run, run, note_table, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "load_model", None)
    monkeypatch.setattr(predict, "load_run", None)
    image = str(note_table.parent / "3.png")
    with pytest.raises(SystemExit, match=r"is a folder, expected the name of a file to write: give another --out"):
        cli.main(["predict", str(image_run), "--image", image, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"out would replace the table that is read, .*: give another --out"):
        cli.main(["predict", str(image_run), "--csv", str(note_table), "--out", str(note_table)])
    (run / "predictions.csv").mkdir()
    with pytest.raises(ValueError, match=r"predictions\.csv is a folder, but the stage writes a file"):
        evaluate.main(run)
    with pytest.raises(ValueError, match=r"bootstrap \(--bootstrap\) must be 0 .* got -1"):
        evaluate.main(run, bootstrap=-1)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_truncated_image_ends_in_one_line_with_what_leaves_it_out(note_table, tmp_path, workers, cached):
    folder = Path(shutil.copytree(note_table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("without")))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-30])
    options = ["--data", str(folder / "set.csv"), "--out", str(tmp_path / "run"), *SMALL, "--workers", workers]
    options += ["--cache-folder", str(tmp_path / "cache")] if cached else []
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *options])
    message = str(end.value)
    assert message.startswith(f"ValueError: cannot read the image '{folder / '1.png'}': ")
    assert message.endswith(
        ". Replace it, or leave such rows out (--on-bad-image skip); --verify-images lists all of them before the "
        "training."
    )
    assert "\n" not in message


def test_a_run_that_lost_its_last_checkpoint_is_not_begun_again(run, note_table):
    (run / "checkpoints" / "last.ckpt").unlink()
    history = (run / "history.jsonl").read_text()
    for resume in ([], ["--resume"]):
        with pytest.raises(
            SystemExit, match=r"last\.ckpt is missing, but .*run holds a run: restore the file, or give"
        ):
            cli.main(["train", "--data", str(note_table), "--out", str(run), *SMALL, *resume])
    assert (run / "history.jsonl").read_text() == history


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-heads", "5"], r"num_heads \(--num-heads\) must divide dim \(--dim\), 32, got 5"),
        (["--accelerator", "gpus"], r"accelerator 'gpus' \(--accelerator\) with .* invalid accelerator name"),
        (
            ["--accelerator", "mps"],
            r"accelerator 'mps' \(--accelerator\) with devices 1 \(--devices\) cannot be used: ",
        ),
        (["--seeds"], r"seeds \(--seeds\) must name at least one seed"),
    ],
)
def test_what_nothing_can_be_trained_with_is_named_with_its_option(note_table, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", "--data", str(note_table), "--out", str(tmp_path / "run"), *SMALL, *options])


def test_several_seeds_end_with_one_command_that_goes_on_with_all(note_table, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(train, "main", lambda config: [out / f"seed-{seed}" for seed in config.seeds])
    cli.main(["train", "--data", str(note_table), "--out", str(out), *SMALL, "--seeds", "3", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"trained: {out}/seed-3", f"trained: {out}/seed-4"]
    assert lines[2:] == [f"next: python -m recipes.medvlmoe evaluate {out}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "", r"config\.json is empty"),
        ("config.json", '{"preset": "ti', r"config\.json is no json"),
        ("config.json", "\xff", r"config\.json is no json|holds"),
        ("config.json", "[1]", r"config\.json holds a list instead of an object"),
        ("config.json", "{}", r"config\.json lacks preset, data, model, train: it is not the file of a run"),
        ("training.json", "{}", r"training\.json lacks epochs"),
        ("encoders/model.json", '{"image": {}}', r"model\.json lacks text, classes, task"),
        ("encoders/model.json", "nonsense", r"model\.json is no json"),
        ("checkpoints/best.ckpt", "nonsense", r"best\.ckpt cannot be read as a checkpoint"),
    ],
)
def test_damaged_files_of_a_run_are_named(run, name, content, message):
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit, match=f"^ValueError: .*{message}"):
        cli.main(["evaluate", str(run)])


def test_settings_of_another_type_or_recipe_are_refused_with_the_file(run):
    config = read_json(run / "config.json")
    for change, message in (
        (
            {"train": config["train"] | {"epochs": "many"}},
            r"config\.json: settings: train\.epochs must be int, got 'many'",
        ),
        ({"preset": "huge"}, r"config\.json: settings: preset must be 'paper' or 'tiny' or .*, got 'huge'"),
        ({"model": {"temperatures": [1]}}, r"config\.json: settings: model\.temperatures not known to this version"),
    ):
        write_json(run / "config.json", config | change)
        with pytest.raises(ValueError, match=message):
            load_model(run)


def test_an_architecture_that_nothing_can_be_built_from_is_named(run):
    about = read_json(run / "encoders" / "model.json")
    write_json(run / "encoders" / "model.json", about | {"image": {"size": 32}})
    with pytest.raises(ValueError, match=r"model\.json lacks 'architecture': restore it"):
        load_model(run)
    write_json(run / "encoders" / "model.json", about | {"task": "multi-label", "classes": ["a", "b"]})
    with pytest.raises(ValueError, match=r"best\.ckpt holds the weights of another model: 2 of another shape"):
        load_model(run)


def test_a_damaged_tokenizer_is_named(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "encoders" / "text" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"encoders/text does not hold a text encoder's configuration and tokenizer"):
        load_model(run)


def test_a_table_that_was_edited_after_training_is_refused(note_table, run, tmp_path):
    folder = Path(shutil.copytree(note_table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("with*")))
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"data": config["data"] | {"data": str(folder / "set.csv")}})
    assert evaluate.main(run, bootstrap=0)["test"]["studies"] == 3
    lines = (folder / "set.csv").read_text().splitlines()
    for edited, message in (
        (lines[:-1], r"set\.csv is not as it was when .* was trained: test has 2 studies, 3 when it was trained"),
        (
            [*lines[:-1], lines[-1][:-1] + str(1 - int(lines[-1][-1]))],
            r"set\.csv is not as it was when .*: the labels of test differ",
        ),
    ):
        assert edited != lines
        (folder / "set.csv").write_text("\n".join(edited) + "\n")
        with pytest.raises(ValueError, match=message):
            evaluate.main(run, bootstrap=0)
    (run / "data.json").unlink()
    assert evaluate.main(run, bootstrap=0)["test"]["studies"] == 3


def test_truncated_images_stop_the_run_before_its_first_epoch_when_asked(note_table, tmp_path):
    folder = Path(shutil.copytree(note_table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("with*")))
    content = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(content[:-30])
    options = ["--data", str(folder / "set.csv"), "--out", str(tmp_path / "run"), *SMALL]
    with pytest.raises(ValueError, match=r"set\.csv: 1 of 12 images cannot be read: 7\.png .*--on-bad-image skip"):
        train.main(parse_train([*options, "--verify-images"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_of_images_is_predicted(note_table, image_run):
    table = predict.main(image_run, images=[note_table.parent])
    assert [Path(name).name for name in table["image"]] == sorted(f"{i}.png" for i in range(12))


def table_of_names(folder, names):
    rows = [f"{i}.png,{name},p{i}" for i, name in enumerate(names)]
    (folder / "names.csv").write_text("\n".join(["image,diagnosis,patient", *rows]) + "\n")
    return ["--data", str(folder / "names.csv"), "--split-column", "None", "--label-column", "diagnosis"]


def test_labels_are_read_by_options_of_the_command_line(note_table):
    """What only Python could say before: separator, negative label, classes, task, seed and shares of the split."""
    cells = ["mass;cyst", "cyst", "none", "mass", "none", "cyst"]
    options = table_of_names(note_table.parent, cells)
    more = ["--label-separator", ";", "--negative-label", "none", "--classes", "mass", "cyst", "--split-seed", "3"]
    source = build_source(parse_train([*options, *more, "--fractions", "0.5", "0.25", "0.25"]).data, 32)
    assert (source.task, source.classes) == ("multi-label", ("mass", "cyst"))
    rows = {
        name: row for _, split in source.splits() for name, row in zip(split.ids, split.labels.tolist(), strict=True)
    }
    assert rows == {f"{i}.png": [float("mass" in cell), float("cyst" in cell)] for i, cell in enumerate(cells)}
    assert any("seed 3 and fractions (0.5, 0.25, 0.25)" in note for note in source.notes)
    grades = table_of_names(note_table.parent, ["low", "high", "mid", "low", "high", "mid"])
    grades += ["--task", "ordinal-regression"]
    with pytest.raises(ValueError, match=r"classes must be given, lowest first \(--classes\)"):
        build_source(parse_train(grades).data, 32)
    source = build_source(parse_train([*grades, "--classes", "low", "mid", "high"]).data, 32)
    assert (source.task, source.classes) == ("ordinal-regression", ("low", "mid", "high"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-column", "picture"], r"lacks the column 'picture'; it has .* Name the column with --image-column"),
        (["--text-column", "report"], r"lacks the column 'report'; .* Name the column with --text-column"),
        (["--label-columns", "Edema"], r"lacks the column 'Edema'; .* Name the column with --label-columns"),
        (["--group-column", "patient"], r"lacks the column 'patient'; .* Name the column with --group-column"),
        (["--split-column", "fold"], r"lacks the column 'fold'; .* --split-column \(None draws a split\)"),
        (["--split-column", "sick"], r"a split must be one of .*Name another column with --split-column"),
        (["--image-root", "/nowhere"], r"12 of 12 images are missing .*--image-root.*--on-bad-image skip"),
        (["--label-columns", "clinical"], r"a label must be 1, 0, -1 .* read with --label-column"),
        (
            ["--label-column", "clinical"],
            r"give either --label-columns .* or --label-column ",
        ),
        (["--negative-label", "none"], r"--negative-label is for --label-column"),
        (["--classes", "a", "b"], r"--classes must give 1 different names "),
        (["--task", "multi-class"], r"needs exactly one 1 .*--task multi-label"),
        (["--group-column", "sick"], r"groups must not cross splits.*--split-column None.*--group-column"),
        (["--data", "brestmnist"], r"is no flag of MedMNIST"),
        (
            ["--data", "breastmnist", "--data-root", "/nowhere"],
            r"--data: .*does not exist\. Pass --download, or --data-root, ",
        ),
    ],
)
def test_errors_name_the_option_that_mends_them(note_table, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        build_source(parse_train(["--data", str(note_table), *SMALL, *options]).data, 32)
    assert not python_names(str(raised.value))


def test_errors_over_sets_of_radiographs_name_flags(tmp_path):
    roots = {
        "chestxray14": folders.chestxray14(tmp_path / "a"),
        "chexpert": folders.chexpert_folder(tmp_path / "b"),
        "mimic-cxr": folders.mimic_cxr_folder(tmp_path / "c"),
        "openi": folders.openi_folder(tmp_path / "d"),
    }
    cases = [
        ("chestxray14", ["--uncertain", "ones"], "leave --uncertain and --blank out"),
        ("openi", ["--views", "frontal"], "--views: openi names no views"),
        ("chexpert", ["--views", "oblique"], "--views: no row of"),
        ("mimic-cxr", ["--text-section", "findings,"], "--text-section must name a section"),
        ("openi", ["--fractions", "0", "0.5", "0.5"], "--fractions must be three positive numbers"),
    ]
    for name, options, expected in cases:
        data = parse_train(["--data", f"{name}:{roots[name]}", *options]).data
        with pytest.raises(ValueError, match=re.escape(expected)) as raised:
            texts_of(build_source(data, 32).train, data)
        assert not python_names(str(raised.value))
    for name, root in roots.items():
        image = next(path for path in sorted(root.rglob("*")) if path.suffix in (".png", ".jpg"))
        image.unlink()
        with pytest.raises(ValueError, match=r"missing or empty.*\(--on-bad-image skip\)") as raised:
            build_source(parse_train(["--data", f"{name}:{root}"]).data, 32)
        assert not python_names(str(raised.value))
    (roots["chestxray14"] / "test_list.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks test_list\.txt.*\(--no-official-splits\)"):
        build_source(parse_train(["--data", f"chestxray14:{roots['chestxray14']}"]).data, 32)


def test_predict_names_only_flags_that_it_has(note_table, image_run, tmp_path):
    (tmp_path / "new.csv").write_text("image\nabsent.png\n")
    run = ["predict", str(image_run), "--csv", str(tmp_path / "new.csv"), "--out", str(tmp_path / "out.csv")]
    with pytest.raises(SystemExit, match=r"1 of 1 images are missing .* Set --image-root to .* or remove such rows\.$"):
        cli.main(run)
    with pytest.raises(SystemExit, match=r"lacks the column 'scan'; .* Name the column with --image-column$"):
        cli.main([*run, "--image-column", "scan"])


@pytest.mark.parametrize(
    ("command", "spelling"),
    [
        (parse_train, {*SPELLING.flags.values(), *DRAWN_FLAGS.values()}),
        (parse_check, set(SPELLING.flags.values())),
        (lambda options: cli.main(["external", *options]), set(SPELLING.flags.values())),
        (lambda options: cli.main(["predict", *options]), set(predict.SPELLING.flags.values())),
    ],
)
def test_flags_that_errors_name_exist(command, spelling, capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    text = capsys.readouterr().out
    assert [flag for flag in spelling if flag not in text] == []


@pytest.mark.parametrize("recipe", ["medvlmoe", "medmoe"])
def test_machines_are_passed_on_and_loggers_checked_before_anything_is_built(recipe, tmp_path, monkeypatch):
    stage = train if recipe == "medvlmoe" else pretrain
    parse = parse_train if recipe == "medvlmoe" else parse_pretrain
    built = {}

    def fabric(**options):
        built.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(strategy, "Fabric", fabric)
    options = ["--out", str(tmp_path / "run"), "--nodes", "3", "--devices", "2", "--accelerator", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        stage.main(parse(options))
    assert (built["num_nodes"], built["devices"]) == (3, 2)
    with pytest.raises(ValueError, match=r"nodes \(--nodes\) must be at least 1, got 0"):
        stage.main(parse([*options, "--nodes", "0"]))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'--loggers wandb needs wandb.*pip install "moekit\[loggers\]"'):
        stage.main(parse([*options, "--loggers", "wandb"]))


def test_balanced_classes_change_the_training_loss_and_not_the_validation_loss(note_table, image_run, tmp_path):
    """The labels of this table are uneven: 4 of 6 training studies are negative."""
    options = ["--data", str(note_table), "--out", str(tmp_path / "run"), *SMALL, "--lr-encoder", "0", "--lr-head", "0"]
    records = []
    for kind in ("none", "balanced"):
        train.main(parse_train([*options, "--out", str(tmp_path / kind), "--class-weights", kind]))
        records.append(json.loads((tmp_path / kind / "history.jsonl").read_text()))
    plain, balanced = records
    assert plain["val_loss"] == balanced["val_loss"]
    assert plain["task_loss"] != pytest.approx(balanced["task_loss"], abs=1e-5)
