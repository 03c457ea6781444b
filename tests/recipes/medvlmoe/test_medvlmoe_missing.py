"""Studies without image or text from a csv to training, evaluation, report and prediction."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recipes.data.leakage import find_leaks
from recipes.data.verify import verify_images
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import evaluate, external, predict, train
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import DataConfig, ManifestConfig
from recipes.medvlmoe.modality_scores import modalities_over_seeds, modality_lines
from recipes.medvlmoe.report import write_report
from recipes.medvlmoe.sources import build_source
from tests.recipes.medvlmoe.conftest import SMALL

pytestmark = pytest.mark.slow

NOTES = ["fever and a dry cough", "no complaint of any kind"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table in which every fourth study of each split has no image, and another fourth no text; and a run on it."""
    folder = tmp_path_factory.mktemp("missing")
    rng = np.random.default_rng(0)
    rows = ["image,note,split,sick"]
    for number in range(32):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{number}.png")
        turn, sick = number // 4 % 4, number // 16
        image, note = "" if turn == 1 else f"{number}.png", "" if turn == 2 else NOTES[sick]
        rows.append(f"{image},{note},{('train', 'train', 'val', 'test')[number % 4]},{sick}")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    run = ["--data", str(folder / "set.csv"), "--text-column", "note", "--out", str(folder / "run"), *SMALL]
    train.main(cli.parse_train([*run, "--drop-image", "0.2", "--drop-text", "0.2", "--cache-folder", str(folder)]))
    evaluate.main(folder / "run", bootstrap=10)
    return folder


def data_config(folder):
    return DataConfig(
        data=str(folder / "set.csv"), manifest=ManifestConfig(text_column="note", label_columns=("sick",))
    )


def probs(table):
    return table.filter(like="prob:").to_numpy()


def test_blank_cells_of_images_are_studies_of_their_own(folder, capsys):
    source = build_source(data_config(folder), 32)
    assert "8 of 32 studies have a text and no image" in source.notes
    missing = [study for study in (source.train[i] for i in range(len(source.train))) if study.image is None]
    assert [study.id for study in missing] == ["row 5", "row 6", "row 21", "row 22"]
    assert all(study.text for study in missing)
    assert verify_images(source.splits(), "set") == 24
    assert not any("row" in leak.first for leak in find_leaks(source) if leak.kind != "patient")


def test_evaluation_scores_the_same_studies_by_what_is_shown(folder):
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    content = metrics["modalities"]
    assert content["trained_with_dropout"]
    assert list(content["values"]) == ["image and text", "image only", "text only"]
    # Of 8 test studies 2 lack the image and 2 the text.
    assert {one["studies"] for one in content["values"].values()} == {4}
    assert metrics["test"]["studies"] == 8
    page = write_report(folder / "run").read_text()
    section = page[page.index("Missing modalities") :]
    assert all(name in section for name in content["values"])
    assert "trained without modality dropout" not in page
    lines = modality_lines(content)
    assert [line.rpartition(":")[0] for line in lines] == [f"test macro AUROC, {name}" for name in content["values"]]


def test_scores_of_one_modality_are_those_of_predictions_without_the_other(folder):
    table = pd.read_csv(folder / "set.csv").query("split == 'test'").dropna()
    values = json.loads((folder / "run" / "metrics.json").read_text())["modalities"]["values"]
    for kept, name in (("image", "image only"), ("note", "text only")):
        alone = table.copy()
        alone.loc[:, [column for column in ("image", "note") if column != kept]] = ""
        alone.to_csv(folder / "alone.csv", index=False)
        column = "note" if kept == "note" else None
        if column is None:
            with pytest.warns(UserWarning, match="column 'note' is blank in every row"):
                output = predict.main(folder / "run", csv=folder / "alone.csv")
        else:
            output = predict.main(folder / "run", csv=folder / "alone.csv")
        positive, negative = (probs(output)[table["sick"].to_numpy() == label] for label in (1, 0))
        wins = (positive > negative.T).mean() + (positive == negative.T).mean() / 2
        assert values[name]["macro_auroc"] == pytest.approx(wins)


def test_prediction_takes_either_alone(folder, tmp_path, capsys):
    both = probs(predict.main(folder / "run", images=[folder / "0.png"], text=NOTES[1]))
    image = probs(predict.main(folder / "run", images=[folder / "0.png"]))
    text_table = predict.main(folder / "run", text=NOTES[1])
    assert list(text_table["image"]) == [""]
    assert len({round(float(one[0, 0]), 6) for one in (both, image, probs(text_table))}) == 3
    (tmp_path / "list.csv").write_text(f"image,note\n{folder}/0.png,\n,{NOTES[1]}\n{folder}/0.png,{NOTES[1]}\n")
    rows = probs(predict.main(folder / "run", csv=tmp_path / "list.csv"))
    np.testing.assert_allclose(rows, np.concatenate([image, probs(text_table), both]), atol=1e-5)
    cli.main(["predict", str(folder / "run"), "--text", NOTES[0], "--out", str(tmp_path / "text.csv")])
    assert "(1 rows)" in capsys.readouterr().out


def test_prediction_without_anything_is_refused(folder, tmp_path):
    (tmp_path / "list.csv").write_text("image,note\n,\n")
    with pytest.raises(ValueError, match=r"'image', row 1 is blank, and the row has no text either"):
        predict.main(folder / "run", csv=tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"text is blank: leave it out \(--text\) or give an image \(--image\)"):
        predict.main(folder / "run", text=" ")


def test_a_run_trained_with_every_image_warns_of_missing_ones(trained_run):
    with pytest.warns(UserWarning, match="1 of 1 studies have no image, and .* was trained without --drop-image"):
        predict.main(trained_run, text=NOTES[0])


def test_a_run_without_texts_refuses_studies_without_images(image_run, folder, tmp_path):
    with pytest.raises(ValueError, match=r"was trained without texts and reads none, so leave it out \(--text\)"):
        predict.main(image_run, text=NOTES[0])
    (tmp_path / "list.csv").write_text("image\n \n")
    with pytest.raises(ValueError, match="column 'image', row 1 is blank, expected a value in every row"):
        predict.main(image_run, csv=tmp_path / "list.csv")
    evaluate.main(image_run, bootstrap=0)
    with pytest.raises(ValueError, match="2 studies of test have no image and no text that is read, such as 'row"):
        external.main(image_run, data_config(folder))


def test_training_refuses_studies_of_which_nothing_is_read(folder, tmp_path):
    options = ["--data", str(folder / "set.csv"), "--out", str(tmp_path / "run"), *SMALL]
    with pytest.raises(ValueError, match=r"row 5 is blank, .* no column of texts was named \(--text-column\)"):
        train.main(cli.parse_train(options))
    options += ["--text-column", "note", "--variant", "vision-only"]
    with pytest.raises(ValueError, match=r"4 studies of train have no image and no text that is read, such as 'row 5'"):
        train.main(cli.parse_train(options))


def test_a_model_of_images_alone_has_no_scores_by_modality(image_run):
    evaluate.main(image_run, bootstrap=0)
    assert json.loads((image_run / "metrics.json").read_text())["modalities"] is None
    assert "Missing modalities" not in write_report(image_run).read_text()


def test_scores_by_modality_are_means_over_seeds():
    runs = [
        {"modalities": {"trained_with_dropout": False, "values": {"image only": {"macro_auroc": value}}}}
        for value in (0.6, 0.8)
    ]
    content = modalities_over_seeds(runs)
    assert content["values"]["image only"]["macro_auroc"]["mean"] == pytest.approx(0.7)
    lines = modality_lines(content)
    assert lines[0] == "test macro AUROC, image only: 0.7000"
    assert "trained without --drop-image and --drop-text" in lines[1]
    assert modalities_over_seeds([*runs, {"modalities": None}]) is None
    assert modality_lines(None) == []


def test_null_streams_learn_from_the_studies_that_lack_a_modality(folder):
    model = load_model(folder / "run", "last")[0]
    torch.manual_seed(0)
    assert model.null_image.abs().max() > 0
    state = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer"]["state"]
    moments = [one["exp_avg"] for one in state.values() if one["exp_avg"].shape == model.null_image.shape]
    assert len(moments) == 2  # of the null text and the null image
    assert all(moment.abs().max() > 0 for moment in moments)
