import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.evaluation.assemble import Draw, assemble, one_hot, unofficial
from recipes.data.evaluation.labelled_images import labelled_images
from recipes.data.evaluation.types import EvaluationSet
from recipes.data.image_files import ImageFiles
from recipes.data.pairs import PairSplit
from recipes.data.studies import check_splits_apart


@pytest.fixture
def images(tmp_path, picture):
    """Six images of three patients."""
    paths = [picture(tmp_path / f"{i}.png", shade=10 * i) for i in range(6)]
    groups = ["p0", "p0", "p1", "p1", "p2", "p2"]
    labels = one_hot([0, 1, 0, 1, 0, 1], 2)
    return labelled_images([path.name for path in paths], paths, labels, groups, modality="ct", texts=list("abcdef"))


def build(images, splits, **options):
    return assemble("mine", images, splits, task="binary-class", classes=("no", "yes"), where="folder", **options)


def test_cuts_named_splits(images):
    result = build(images, ["train", "train", "val", "val", "test", "test"], prompts="p", notes=["n"])
    assert isinstance(result, EvaluationSet)
    assert (result.name, result.classes, result.modality, result.prompts) == ("mine", ("no", "yes"), "ct", "p")
    assert result.notes == ("n",)
    assert {name: split.ids for name, split in result.splits.items()} == {
        "train": ("0.png", "1.png"),
        "val": ("2.png", "3.png"),
        "test": ("4.png", "5.png"),
    }
    study = result.splits["test"][1]
    assert (study.id, study.group, study.text, study.modality, study.boxes) == ("5.png", "p2", "f", "ct", ())
    np.testing.assert_array_equal(study.image, np.full((6, 8), 50))
    np.testing.assert_array_equal(study.labels, [0, 1])


def test_a_split_is_a_sequence_that_travels(images):
    split = build(images, ["test"] * 6).splits["test"]
    assert isinstance(split, PairSplit)
    assert [study.id for study in split] == list(split.ids)
    again = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(again[2].image, split[2].image)
    split[0].labels[:] = 7
    np.testing.assert_array_equal(split[0].labels, [1, 0])


def test_draws_splits_that_keep_groups_together(images):
    result = build(images, Draw(seed=5, fractions=(0.4, 0.3, 0.3)))
    assert sorted(split.groups for split in result.splits.values()) == [("p0", "p0"), ("p1", "p1"), ("p2", "p2")]
    assert result.notes == ("splits drawn by group with seed 5 and fractions (0.4, 0.3, 0.3)",)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=40).filter(lambda groups: len(set(groups)) > 2))
def test_drawn_splits_lose_no_study(tmp_path_factory, groups):
    folder = tmp_path_factory.mktemp("drawn")
    path = folder / "x"
    path.write_bytes(b"stands in for an image")
    names = [str(i) for i in range(len(groups))]
    labels = one_hot([0] * len(groups), 2)
    images = labelled_images(names, [path] * len(groups), labels, [str(g) for g in groups], modality=None)
    result = build(images, Draw())
    assert sorted((name for split in result.splits.values() for name in split.ids), key=int) == names


def test_everything_for_test_or_drawn():
    assert unofficial("test", 2, 0, (0.7, 0.1, 0.2)) == ["test", "test"]
    assert unofficial("draw", 2, 3, (0.5, 0.2, 0.3)) == Draw(3, (0.5, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"seed, fractions: splits='test' draws nothing, which has no use for it"):
        unofficial("test", 2, 3, (0.5, 0.2, 0.3))
    with pytest.raises(ValueError, match="splits must be one of 'draw', 'test', got 'all'"):
        unofficial("all", 2, 0, (0.7, 0.1, 0.2))


def test_refuses_what_is_missing_at_once_and_what_is_damaged_when_read(images, tmp_path):
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"folder: 2 of 6 images are missing or empty: .*2\.png, .*3\.png\. Complete"):
        build(images, ["test"] * 6)
    with pytest.raises(ValueError, match="on_bad_image must be one of 'error', 'skip', got 'ignore'"):
        build(images, ["test"] * 6, on_bad_image="ignore")


def test_skips_and_counts_what_cannot_be_read(images, tmp_path):
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").write_bytes(b"damaged")
    result = build(images, ["train", "train", "val", "val", "test", "test"], on_bad_image="skip")
    assert [split.ids for split in result.splits.values()] == [("0.png", "1.png"), ("3.png",), ("5.png",)]
    assert "skipped 2 of 6 images that cannot be read, such as image file" in result.notes[0]
    (tmp_path / "5.png").unlink()
    with pytest.raises(ValueError, match="folder: the test split of mine holds no image after 3 unreadable images"):
        build(images, ["train", "train", "val", "val", "test", "test"], on_bad_image="skip")


def test_damaged_images_are_errors_when_read(images, tmp_path):
    (tmp_path / "0.png").write_bytes(b"damaged")
    split = build(images, ["test"] * 6).splits["test"]
    assert split[1].id == "1.png"
    with pytest.raises(ValueError, match=r"cannot read the image '.*0\.png'"):
        split[0]


def test_refuses_sets_without_test_images_or_with_groups_that_cross(images):
    with pytest.raises(ValueError, match="the test split of mine holds no image"):
        build(images, ["train"] * 6)
    with pytest.raises(ValueError, match=r"mine \(folder\): groups must not cross splits.*'p0' \(train and test\)"):
        build(images, ["train", "test", "test", "test", "test", "test"])


def test_refuses_an_image_listed_twice(images):
    doubled = images.take([0, 1, 0])
    with pytest.raises(ValueError, match=r"folder: '0\.png' is listed twice \(train and test\): expected every image"):
        build(doubled, ["train", "train", "test"])
    with pytest.raises(ValueError, match=r"'0\.png' is listed twice: expected"):
        build(doubled, Draw())


def test_a_set_of_several_modalities_has_none(images):
    mixed = ImageFiles(**{**vars(images), "modalities": ("ct",) * 5 + (None,)})
    result = build(mixed, ["test"] * 6)
    assert result.modality is None
    assert result.splits["test"].modalities == mixed.modalities


def test_splits_of_any_names_may_be_checked(images):
    with pytest.raises(ValueError, match=r"mine: groups must not cross splits, but 1 do: 'p0' \(first and last\)"):
        check_splits_apart("mine", [("first", images.take([0])), ("last", images.take([1, 2]))])
    check_splits_apart("mine", [("first", images.take([0, 1])), ("last", images.take([2]))])
