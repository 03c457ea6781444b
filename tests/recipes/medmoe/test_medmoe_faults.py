"""Faults of users and of files end in one line that names the file and the option."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.medmoe import __main__ as cli
from recipes.medmoe.inference.run import Session
from recipes.shared.runs import read_json, write_json

pytestmark = pytest.mark.slow

OPTIONS = (
    "--accelerator cpu --epochs 1 --batch-size 4 --image-size 64 --dim 16 --expert-dim 8 --router-hidden-dim 8 "
    "--modality-column None"
)
SMALL = OPTIONS.split()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve images with texts."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["image,text,split"]
    for i in range(12):
        Image.fromarray(np.full((64, 64), 20 * i, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,note {i} of a scan,{('train', 'train', 'val', 'test')[i % 4]}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def trained(table):
    run = table.parent / "run"
    cli.main(["pretrain", "--data", str(table), "--out", str(run), *SMALL])
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run, to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [("--batch-size", "0", "at least 1"), ("--epochs", "0", "at least 1"), ("--lr", "-1", "at least 0")],
)
def test_numbers_outside_their_limits_are_refused_before_anything_is_made(table, tmp_path, option, value, limits):
    arguments = ["pretrain", "--data", str(table), "--out", str(tmp_path / "run"), *SMALL, option, value]
    with pytest.raises(SystemExit, match=rf"^ValueError: .*\({option}\) must be {limits}, got {value}"):
        cli.main(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "", r"config\.json is empty"),
        ("config.json", '{"preset": "ti', r"config\.json is no json"),
        ("encoders/model.json", "{}", r"model\.json lacks image: it is not the file of a run"),
        ("encoders/text/tokenizer.json", "{", r"encoders/text does not hold a text encoder's configuration"),
        ("checkpoints/best.ckpt", "", r"best\.ckpt is empty.*--checkpoint last"),
        ("checkpoints/best.ckpt", "nonsense", r"best\.ckpt cannot be read as a checkpoint .*--checkpoint last"),
    ],
)
def test_damaged_files_of_a_run_are_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(SystemExit, match=f"^ValueError: .*{message}"):
        cli.main(["retrieve", str(run)])


def test_outputs_that_cannot_be_written_are_refused_before_the_model_runs(run, monkeypatch):
    (run / "metrics.json").unlink()
    (run / "metrics.json").mkdir()
    monkeypatch.setattr(Session, "open", None)
    with pytest.raises(SystemExit, match=r"metrics\.json is a folder, but the stage writes a file of this name"):
        cli.main(["retrieve", str(run)])


def test_a_table_that_was_edited_after_training_is_refused(table, run, tmp_path):
    folder = Path(shutil.copytree(table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("run")))
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"data": config["data"] | {"data": str(folder / "pairs.csv")}})
    text = table.read_text()
    for edited, message in (
        ("\n".join(text.splitlines()[:-1]) + "\n", "test has 2 studies, 3 when it was trained"),
        (text.replace("note 3 of", "note x of"), "the texts of test differ"),
    ):
        (folder / "pairs.csv").write_text(edited)
        with pytest.raises(SystemExit, match=rf"pairs\.csv is not as it was when .* was trained: {message}"):
            cli.main(["retrieve", str(run)])


def test_truncated_images_stop_the_run_before_its_first_epoch_when_asked(table, tmp_path):
    folder = Path(shutil.copytree(table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("run")))
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:-30])
    options = ["--data", str(folder / "pairs.csv"), "--out", str(tmp_path / "run"), *SMALL, "--verify-images"]
    with pytest.raises(SystemExit, match=r"pairs\.csv: 1 of 12 images cannot be read: 7\.png .*--on-bad-image skip"):
        cli.main(["pretrain", *options])
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image_ends_in_one_line_with_what_leaves_it_out(table, tmp_path, workers):
    folder = Path(shutil.copytree(table.parent, tmp_path / "set", ignore=shutil.ignore_patterns("run")))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-30])
    options = ["--data", str(folder / "pairs.csv"), "--out", str(tmp_path / "run"), *SMALL, "--workers", workers]
    with pytest.raises(
        SystemExit, match=r"^ValueError: cannot read the image '[^\n]*1\.png'[^\n]*--on-bad-image skip"
    ) as end:
        cli.main(["pretrain", *options])
    assert "\n" not in str(end.value)


def test_a_run_that_lost_its_last_checkpoint_is_not_begun_again(table, run):
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"last\.ckpt is missing, but .*run holds a run: restore the file"):
        cli.main(["pretrain", "--data", str(table), "--out", str(run), *SMALL, "--resume"])
