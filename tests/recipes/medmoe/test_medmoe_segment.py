"""Zero-shot segmentation: regions from maps, overlaps with known ones, masks beside images, and the stage."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recipes.data.studies import Box
from recipes.medmoe.__main__ import main
from recipes.medmoe.segment import stage as segment
from recipes.medmoe.segment.masks import mask_region, masks_of, without_masks
from recipes.medmoe.segment.regions import best_threshold, box_region, enlarged, overlap, summarise
from recipes.shared.runs import read_json
from tests.recipes.json_files import change_json


def square(side, x0, y0, x1, y1):
    return box_region([Box("a", x0, y0, x1, y1)], side)


def test_boxes_become_the_pixels_whose_centre_they_hold():
    assert square(4, 1, 0, 3, 2).astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert not square(4, 1.6, 0, 2.4, 4).any()  # no centre lies inside


def test_overlaps_are_counted():
    one, other = square(4, 0, 0, 2, 4), square(4, 1, 0, 3, 4)
    result = overlap(one, other)
    assert result.iou == pytest.approx(4 / 12)
    assert result.dice == pytest.approx(8 / 16)
    assert result.random_dice == pytest.approx(0.5)  # both cover half: half of each is expected in both
    assert result.whole_dice == pytest.approx(2 * 0.5 / 1.5)
    assert overlap(one & False, other & False)[:2] == (1.0, 1.0)
    assert overlap(one & False, other)[:2] == (0.0, 0.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=9, max_size=9), st.lists(st.booleans(), min_size=9, max_size=9))
def test_overlaps_are_symmetric_and_dice_follows_from_iou(one, other):
    first, second = np.array(one).reshape(3, 3), np.array(other).reshape(3, 3)
    result = overlap(first, second)
    assert result[:2] == overlap(second, first)[:2]
    assert result.dice == pytest.approx(2 * result.iou / (1 + result.iou))


def test_maps_are_brought_to_a_range_and_enlarged():
    values = enlarged(np.array([[2.0, 4.0], [2.0, 2.0]]), 8)
    assert (values.min(), values.max()) == (0, 1)
    assert np.unravel_index(values.argmax(), values.shape) == (0, 7) or values[0, -1] == 1
    assert not enlarged(np.full((3, 3), 5.0), 8).any()
    with pytest.raises(ValueError, match=r"word_map must have shape \(h, w\)"):
        enlarged(np.zeros(3), 8)


def test_the_threshold_of_the_highest_dice_is_chosen():
    ramp = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (20, 1))
    known = ramp >= 0.6
    chosen = best_threshold([ramp], [known])
    assert overlap(ramp >= chosen, known).dice == 1
    with pytest.raises(ValueError, match=r"at least one map to choose a threshold by"):
        best_threshold([], [])


def test_means_by_finding():
    overlaps = [
        overlap(square(4, 0, 0, 2, 4), square(4, 0, 0, 2, 4)),
        overlap(square(4, 0, 0, 2, 4), square(4, 2, 0, 4, 4)),
    ]
    result = summarise(["a", "b"], ["p", "q"], overlaps, bootstrap=50)
    assert result["dice"] == 0.5
    assert (result["per_finding"]["a"]["dice"], result["per_finding"]["b"]["iou"]) == (1, 0)
    assert result["dice_ci95"][0] <= 0.5 <= result["dice_ci95"][1]
    assert summarise(["a", "b"], ["p", "q"], overlaps, bootstrap=0)["dice_ci95"] is None


def test_masks_beside_images_and_in_a_folder_of_their_own(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[1, 2] = 255
    for name in ("a (1).png", "a (1)_mask.png", "a (1)_mask_1.png", "a (10).png", "b.png"):
        Image.fromarray(mask if "mask" in name else np.zeros((4, 8), np.uint8)).save(tmp_path / name)
    images = without_masks(sorted(tmp_path.glob("*.png")))
    assert [path.name for path in images] == ["a (1).png", "a (10).png", "b.png"]
    assert [path.name for path in masks_of(images[0], tmp_path)] == ["a (1)_mask.png", "a (1)_mask_1.png"]
    assert masks_of(images[1], tmp_path) == []
    (tmp_path / "own").mkdir()
    shutil.copy(tmp_path / "a (1)_mask.png", tmp_path / "own" / "b.png")
    assert masks_of(images[2], tmp_path / "own") == [tmp_path / "own" / "b.png"]
    region = mask_region(masks_of(images[2], tmp_path / "own"), (4, 8), 8)
    assert np.argwhere(region).tolist() == [[3, 2]]  # two rows of the letter box above
    with pytest.raises(ValueError, match=r"is \(4, 8\) pixels \(height, width\), its image \(5, 8\)"):
        mask_region([tmp_path / "b.png"], (5, 8), 8)
    with pytest.raises(ValueError, match="is no folder of masks"):
        masks_of(images[0], tmp_path / "absent")


@pytest.fixture(scope="module")
def run(pretrained_run, tmp_path_factory):
    return shutil.copytree(pretrained_run, tmp_path_factory.mktemp("segment") / "run")


def test_a_run_is_scored_on_its_boxes(run, capsys):
    scores = segment.main(run, bootstrap=20)
    printed = capsys.readouterr().out
    assert "all findings: Dice 0." in printed
    assert "as large at random 0." in printed
    assert scores == read_json(run / "metrics.json")["segmentation"]
    assert scores["threshold_by"] == "Dice on val"
    assert 0 < scores["dice"] < 1
    assert scores["regions"] == sum(one["regions"] for one in scores["per_finding"].values())
    everything = segment.main(run, threshold=0.0, bootstrap=0)
    assert everything["dice"] == pytest.approx(everything["whole_dice"])


def test_a_threshold_is_kept_for_the_weights_that_it_was_chosen_with(run, monkeypatch):
    segment.main(run, bootstrap=0)
    monkeypatch.setattr(segment, "_chosen_threshold", lambda session: 0.25)
    kept = segment.main(run, bootstrap=0)["threshold"]
    change_json(run / "metrics.json", lambda metrics: metrics["segmentation"].update(weights="of another epoch"))
    assert segment.main(run, bootstrap=0)["threshold"] == 0.25 != kept


def test_images_of_ones_own_get_masks_and_scores(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "b.png")
    known = np.zeros((40, 40), np.uint8)
    known[:20] = 255
    Image.fromarray(known).save(tmp_path / "a_mask.png")
    arguments = ["segment", str(run), "--image", str(tmp_path), "--text", "a simple cyst", "--finding", "cyst"]
    main([*arguments, "--masks", str(tmp_path), "--threshold", "0.5", "--bootstrap", "0"])
    printed = capsys.readouterr().out
    assert f"masks of 1 of 2 images in {tmp_path}" in printed
    mask = np.asarray(Image.open(run / "segment" / "00-a-mask.png"))
    assert set(np.unique(mask)) <= {0, 255}
    assert mask.any()
    assert (run / "segment" / "01-b.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a cyst"}, r"image and text belong together"),
        ({"finding": "cyst"}, r"finding and masks \(--finding, --masks\) belong to images of your own"),
        ({"threshold": 2.0}, r"threshold must lie between 0 and 1, got 2.0"),
        ({"bootstrap": -1}, r"bootstrap \(--bootstrap\) must be 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        segment.main(tmp_path, **arguments)
