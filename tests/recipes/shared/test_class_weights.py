"""Weights of labels: every class has the same sum, and the loss is that of the weighted definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.shared.class_weights import balanced_class_weights
from recipes.shared.tasks import TaskHead

NAN = np.nan


def test_positives_and_negatives_of_every_label_weigh_the_same_and_one_on_average():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, NAN, 1], [0, 1, 1]], np.float32)
    weights = balanced_class_weights(labels, "multi-label").numpy()
    np.testing.assert_allclose(weights, [[4 / 6, 3 / 4, 1], [2, 3 / 2, 1]], rtol=1e-6)
    each = np.where(labels == 1, weights[1], weights[0])
    np.testing.assert_allclose([each[~np.isnan(labels[:, c]), c].mean() for c in range(3)], 1, rtol=1e-6)


@pytest.mark.parametrize("task", ["multi-class", "binary-class", "ordinal-regression"])
def test_classes_of_a_single_label_weigh_the_same_and_one_on_average(task):
    labels = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 0]]
    labels = np.concatenate([labels, np.full((1, 3), NAN, np.float32)])
    weights = balanced_class_weights(labels, task).numpy()[1]
    np.testing.assert_allclose(weights, [5 / 8, 5 / 2, 1], rtol=1e-6)
    assert weights[labels[:5].argmax(1)].mean() == pytest.approx(1)


def test_losses_are_weighted_as_defined():
    torch.manual_seed(0)
    logits, weights = torch.randn(5, 3), torch.tensor([[0.5, 1.0, 2.0], [3.0, 0.25, 1.5]])
    labels = torch.tensor([[1.0, 0, NAN], [0, 1, 1], [NAN, NAN, 0], [1, 1, 1], [0, 0, 0]])
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), weight=torch.where(labels == 1, weights[1], weights[0]), reduction="none"
    )
    head = TaskHead(2, 3, "multi-label")
    torch.testing.assert_close(head.losses(logits, labels, weights), (each * known).sum(1))
    torch.testing.assert_close(head.loss(logits, labels, weights), each[known].sum() / known.sum())
    classes = torch.tensor([0, 2, 1, 1, 0])
    single = TaskHead(2, 3, "multi-class").losses(logits, F.one_hot(classes, 3).float(), weights)
    torch.testing.assert_close(single, F.cross_entropy(logits, classes, weight=weights[1], reduction="none"))
    grades = TaskHead(2, 3, "ordinal-regression")
    plain = grades.losses(logits[:, :2], F.one_hot(classes, 3).float())
    torch.testing.assert_close(
        grades.losses(logits[:, :2], F.one_hot(classes, 3).float(), weights), plain * weights[1][classes]
    )
