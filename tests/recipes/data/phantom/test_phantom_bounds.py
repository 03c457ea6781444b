"""The scores the data set promises: 5/6 from one stream, 1 from both, and streams that can be read."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.data.phantom import PhantomSplit, phantom_source
from recipes.data.phantom.chest.findings import PATTERNS, labels_of
from recipes.data.phantom.streams import draw_causes, draw_visible
from recipes.data.studies import StudySource

P = len(PATTERNS)
BOUND = 5 / 6


def latents(count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    visible, causes = draw_visible(11, "test", count), draw_causes(11, "test", count)
    return visible, causes, labels_of(visible, causes)


def macro(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> float:
    return float(roc_auc_score(labels, scores, average="macro"))


def test_labels_join_pattern_and_cause() -> None:
    visible = np.array([[True, False, True, True, False], [False] * 5])
    causes = np.array([[0, 1, 1, 0, 0], [1] * 5])
    expected = [[1, 0, 0, 0, 0, 1, 1, 0, 0, 0], [0] * 10]
    assert np.array_equal(labels_of(visible, causes), np.array(expected, dtype=np.float32))


def test_latents_are_fair_and_uncorrelated() -> None:
    visible, causes, labels = latents(20_000)
    assert labels.mean(axis=0) == pytest.approx(np.full(2 * P, 0.25), abs=0.02)
    assert set(np.unique(labels)) == {0.0, 1.0}
    correlation = np.corrcoef(np.hstack([visible, causes]).T)
    assert np.abs(correlation - np.eye(2 * P)).max() < 0.03


def test_oracles_on_the_latents_reach_exactly_the_bounds() -> None:
    visible, causes, labels = latents(20_000)
    image_only = np.repeat(visible, 2, axis=1).astype(float)
    text_only = np.stack([causes == 0, causes == 1], axis=2).reshape(len(causes), -1).astype(float)
    assert macro(labels, image_only) == pytest.approx(BOUND, abs=0.01)
    assert macro(labels, text_only) == pytest.approx(BOUND, abs=0.01)
    assert macro(labels, image_only * text_only) == 1.0


@pytest.fixture(scope="module")
def source() -> StudySource:
    return phantom_source(seed=2, train=1000, val=1, test=500)


@pytest.fixture(scope="module")
def words(source: StudySource) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    counter = CountVectorizer()
    return counter.fit_transform(source.train.texts), counter.transform(source.test.texts)


def fitted_scores(model, train: tuple, test) -> NDArray[np.float64]:
    """Scores of the test half by one classifier per column of the training half's targets."""
    inputs, targets = train
    columns = [model.fit(inputs, target).decision_function(test) for target in targets.T]
    return np.stack(columns, axis=1)


def aurocs(targets: NDArray, scores: NDArray[np.float64]) -> list[float]:
    return [roc_auc_score(target, score) for target, score in zip(targets.T, scores.T, strict=True)]


def split_of(source: StudySource, name: str) -> PhantomSplit:
    split = getattr(source, name)
    assert isinstance(split, PhantomSplit)
    return split


def test_note_tells_causes_and_not_visibility(source: StudySource, words: tuple) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    model = LogisticRegression(max_iter=300)
    causes = aurocs(test.causes, fitted_scores(model, (words[0], train.causes), words[1]))
    assert min(causes) > 0.99
    visible = aurocs(test.visible, fitted_scores(model, (words[0], train.visible), words[1]))
    # 500 studies: the standard error of an AUROC of 1/2 is 0.026.
    assert max(abs(value - 0.5) for value in visible) < 0.1
    labels = aurocs(test.labels, fitted_scores(model, (words[0], train.labels), words[1]))
    assert 0.75 < np.mean(labels) < 0.85


def features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness, its fine bright and dark detail, and edges: pooled over a grid of 6 x 6 cells."""
    picture = image.astype(np.float32) / 255.0
    smooth = [picture, *(ndimage.gaussian_filter(picture, sigma) for sigma in (1.0, 2.5))]
    fine, middle = smooth[0] - smooth[1], smooth[1] - smooth[2]
    maps = np.stack([picture, np.abs(fine), np.abs(middle), np.maximum(middle, 0.0) ** 2])
    cells = maps.reshape(4, 6, 16, 6, 16).swapaxes(2, 3)
    return np.concatenate([cells.mean(axis=(3, 4)).ravel(), cells[2:].max(axis=(3, 4)).ravel()])


def test_image_tells_visibility_and_not_causes(source: StudySource) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    inputs, held_out = (
        np.stack([features(split[index].image) for index in range(len(split))]) for split in (train, test)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    visible = aurocs(test.visible, fitted_scores(model, (inputs, train.visible), held_out))
    assert min(visible) > 0.8
    causes = aurocs(test.causes, fitted_scores(model, (inputs, train.causes), held_out))
    assert max(abs(value - 0.5) for value in causes) < 0.1
    labels = aurocs(test.labels, fitted_scores(model, (inputs, train.labels), held_out))
    assert 0.7 < np.mean(labels) < 0.85
