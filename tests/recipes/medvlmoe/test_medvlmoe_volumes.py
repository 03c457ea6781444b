"""Volumes: reading them, slices as tokens, and runs from training to prediction."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recipes.data.images.volumes import fit_volume, is_volume_path, read_volume, shown_image, volume_problem
from recipes.data.leakage import find_leaks
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import evaluate, predict, train
from recipes.medvlmoe.config import DataConfig, ManifestConfig
from recipes.medvlmoe.report import write_report
from recipes.medvlmoe.sources import build_source
from recipes.shared.loading import FittedImages
from tests.recipes.data.dicom_files import write_dicom
from tests.recipes.medvlmoe.conftest import SMALL
from tests.recipes.medvlmoe.test_medvlmoe_model import BATCH, SIZE, build, inputs

SLICES = 4


def volumes():
    """A batch in which the second volume has two slices and the third has all."""
    torch.manual_seed(3)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])
    return torch.randn(BATCH, SLICES, 3, SIZE, SIZE), mask


def a_volume(seed, slices=6, side=20):
    return np.random.default_rng(seed).integers(0, 255, (slices, side, side), dtype=np.uint8)


@pytest.mark.parametrize(
    "options", [{}, {"slice_tokens": "patches"}, {"variant": "vision-only"}, {"variant": "no-fusion"}], ids=str
)
def test_slots_of_missing_slices_change_nothing_and_the_order_of_slices_does(options):
    model = build(slices=SLICES, **options)
    _, ids, text_mask = inputs(build())
    images, mask = volumes()
    reference = model(images, ids, text_mask, mask).logits
    for content in (9.0, float("nan")):
        changed = torch.where(mask[:, :, None, None, None], images, content)
        assert torch.equal(model(changed, ids, text_mask, mask).logits, reference)
    turned = images.clone()
    turned[2] = images[2].flip(0)
    other = model(turned, ids, text_mask, mask).logits
    torch.testing.assert_close(other[:2], reference[:2], atol=1e-5, rtol=1e-4)
    is_a_mean = options.get("variant") in ("vision-only", "no-fusion")
    assert torch.allclose(other[2], reference[2], atol=1e-6) == is_a_mean


@pytest.mark.parametrize("tokens", ["summary", "patches"])
def test_a_batch_of_volumes_equals_its_volumes_one_by_one(tokens):
    model = build(slices=SLICES, slice_tokens=tokens)
    _, ids, text_mask = inputs(model)
    images, mask = volumes()
    mask[0] = False  # a study without any slice has no image
    whole = model(images, ids, text_mask, mask).logits
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = model(images[one], ids[one], text_mask[one], mask[one]).logits
        torch.testing.assert_close(whole[one], alone, atol=1e-5, rtol=1e-4)


def test_every_slice_and_its_position_learn():
    model = build(slices=SLICES, slice_tokens="patches").train()
    _, ids, text_mask = inputs(model)
    images, mask = volumes()
    images.requires_grad_()
    model(images, ids, text_mask, mask).logits.square().sum().backward()
    gradients = images.grad.abs().flatten(2).sum(-1)
    assert ((gradients > 0) == mask).all()
    assert (model.slice_stream.position.grad.abs().sum(-1) > 0).all()


def test_an_image_is_a_volume_of_one_slice_and_slices_are_evenly_spaced():
    volume = np.repeat(np.arange(9, dtype=np.uint8)[:, None, None, None], 4, 1).repeat(4, 2)
    assert fit_volume(volume, 4, 3)[:, 0, 0, 0].tolist() == [0, 4, 8]
    assert fit_volume(volume, 4, 1)[:, 0, 0, 0].tolist() == [4]
    assert len(fit_volume(volume, 4, 20)) == 9
    assert fit_volume(np.zeros((5, 7), np.uint8), 8, 3).shape == (1, 8, 8, 1)
    assert fit_volume(np.zeros((5, 7, 3), np.uint8), 8, 3).shape == (1, 8, 8, 3)
    assert shown_image(volume)[0, 0] == 4


def test_folders_arrays_and_dicom_files_of_several_frames_are_volumes(tmp_path):
    expected = a_volume(0, slices=11)
    folder = tmp_path / "slices"
    folder.mkdir()
    for number, one in enumerate(expected):
        Image.fromarray(one).save(folder / f"slice-{number}.png")
    (folder / "notes.txt").write_text("no slice")
    np.save(tmp_path / "array.npy", expected)
    frames = {"NumberOfFrames": 11, "Rows": 20, "Columns": 20, "SamplesPerPixel": 1}
    write_dicom(tmp_path / "frames.dcm", expected, **frames, PhotometricInterpretation="MONOCHROME2")
    for path in (folder, tmp_path / "array.npy", tmp_path / "frames.dcm"):
        assert is_volume_path(path)
        np.testing.assert_array_equal(read_volume(path), expected[..., None])
        assert volume_problem(path) is None
    assert not is_volume_path(folder / "slice-0.png")
    np.save(tmp_path / "hounsfield.npy", expected.astype(np.int16) * 4 - 300)
    wide = read_volume(tmp_path / "hounsfield.npy")
    assert (wide.min(), wide.max()) == (0, 255)


def test_what_is_no_volume_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for number, side in enumerate((4, 5)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / "mixed" / f"{number}.png")
    np.save(tmp_path / "flat.npy", np.zeros((3, 3)))
    (tmp_path / "damaged.npy").write_bytes(b"nothing")
    np.save(tmp_path / "words.npy", np.zeros((2, 3, 3), "U3"))
    for name, message in (
        ("empty", "holds no slice of a volume"),
        ("mixed", r"must be of one shape, got \[\(4, 4\), \(5, 5\)\]"),
        ("flat.npy", r"must be of shape \(D, H, W\) or \(D, H, W, 3\), got \(3, 3\)"),
        ("damaged.npy", "cannot read the volume"),
        ("words.npy", "must hold numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            read_volume(tmp_path / name)


def volume_set(path, counts=(12, 4, 6)):
    arrays = {}
    for seed, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        labels = np.arange(count) % 2
        images = np.stack([a_volume(100 * seed + i) // 4 for i in range(count)])
        images[labels == 1, 3:] += 150  # bright in the later slices
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(path, **arrays)


@pytest.mark.slow
def test_a_set_of_volumes_trains_evaluates_and_reports(tmp_path):
    volume_set(tmp_path / "nodules.npz")
    run = tmp_path / "run"
    options = [*SMALL[: SMALL.index("--label-columns")], "--slices", "4", "--epochs", "2"]
    train.main(cli.parse_train(["--data", str(tmp_path / "nodules.npz"), "--out", str(run), *options]))
    metrics = evaluate.main(run, bootstrap=10)
    assert metrics["test"]["studies"] == 6
    assert (run / "examples.npz").is_file()
    assert "data:image/png" in write_report(run).read_text()
    np.save(tmp_path / "one.npy", np.load(tmp_path / "nodules.npz")["test_images"][0])
    table = predict.main(run, images=[tmp_path / "one.npy"])
    first = json.loads((run / "metrics.json").read_text())["run"]["classes"][0]
    known = pd.read_csv(run / "predictions.csv").query("split == 'test'").iloc[0]
    assert table[f"prob:{first}"][0] == pytest.approx(known[f"prob:{first}"], abs=1e-5)
    with pytest.raises(ValueError, match=r"overlays \(--overlays\): the model of .* has no attention map"):
        predict.main(run, images=[tmp_path / "one.npy"], overlays=tmp_path / "overlays")


@pytest.mark.slow
def test_a_csv_of_volumes_with_texts_and_a_missing_image_trains_and_predicts(tmp_path):
    rows = ["image,note,split,sick"]
    for number in range(16):
        if number % 3 == 0:
            (tmp_path / f"{number}").mkdir()
            for place, one in enumerate(a_volume(number, slices=3 + number % 2)):
                Image.fromarray(one).save(tmp_path / f"{number}" / f"{place}.png")
            image = str(number)
        else:
            np.save(tmp_path / f"{number}.npy", a_volume(number))
            image = "" if number == 1 else f"{number}.npy"
        rows.append(f"{image},note {number % 2},{('train', 'train', 'val', 'test')[number % 4]},{number // 4 % 2}")
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    run = ["--data", str(tmp_path / "set.csv"), "--text-column", "note", "--out", str(tmp_path / "run"), *SMALL]
    train.main(cli.parse_train([*run, "--slices", "5", "--slice-tokens", "patches", "--drop-image", "0.2"]))
    assert evaluate.main(tmp_path / "run", bootstrap=0)["modalities"] is not None
    assert len(predict.main(tmp_path / "run", csv=tmp_path / "set.csv")) == 16
    source = build_source(
        DataConfig(
            data=str(tmp_path / "set.csv"),
            manifest=ManifestConfig(text_column="note", label_columns=("sick",), on_bad_image="skip"),
        ),
        32,
    )
    assert not [leak for leak in find_leaks(source) if leak.kind == "pixels"]
    with pytest.raises(
        ValueError, match=r"is a volume of \d slices, where an image is read: MedVLMoE reads volumes with"
    ):
        FittedImages(source.test, 32).fitted(0)


def test_settings_that_volumes_lack_are_refused(tmp_path):
    volume_set(tmp_path / "nodules.npz", counts=(2, 2, 2))
    base = [
        "--data",
        str(tmp_path / "nodules.npz"),
        "--out",
        str(tmp_path / "run"),
        *SMALL[: SMALL.index("--label-columns")],
    ]
    with pytest.raises(ValueError, match=r"slices \(--slices\) do not go with --cross-attention summary"):
        train.main(cli.parse_train([*base, "--slices", "3", "--cross-attention", "summary"]))
    with pytest.raises(ValueError, match=r"slices \(--slices\) are for the classifier medvlmoe without a contrast"):
        train.main(cli.parse_train([*base, "--slices", "3", "--objective", "convirt"]))
    with pytest.raises(ValueError, match=r"slices \(--slices\) must be at least 1, got 0"):
        train.main(cli.parse_train([*base, "--slices", "0"]))
