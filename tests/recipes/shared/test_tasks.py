"""Losses and probabilities of the four kinds of task."""

import math

import pytest
import torch
import torch.nn.functional as F

from recipes.shared.tasks import TaskHead


def test_unknown_labels_have_no_part_in_a_multi_label_loss():
    head = TaskHead(4, 3, "multi-label")
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, math.nan], [math.nan, 1.0, 0.0]])
    loss = head.loss(logits, labels)
    known = [(0, 0, 1.0), (0, 1, 0.0), (1, 1, 1.0), (1, 2, 0.0)]
    by_hand = sum(F.binary_cross_entropy(logits[i, j].sigmoid(), torch.tensor(y)) for i, j, y in known) / 4
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    loss.backward()
    assert logits.grad[0, 2] == 0
    assert logits.grad[1, 0] == 0


@pytest.mark.parametrize("task", ["multi-label", "multi-class", "binary-class", "ordinal-regression"])
def test_losses_of_studies_add_up_to_the_mean_over_known_labels(task):
    head = TaskHead(4, 3, task)
    logits = head(torch.randn(5, 4))
    labels = F.one_hot(torch.tensor([2, 0, 1, 1, 0]), 3).float()
    labels[1] = math.nan
    labels[3] = math.nan
    known = head.known_labels(labels)
    assert known.tolist() == ([3, 0, 3, 0, 3] if task == "multi-label" else [1, 0, 1, 0, 1])
    each = head.losses(logits, labels)
    assert each[1] == each[3] == 0
    rows = [0, 2, 4]
    torch.testing.assert_close(each.sum() / known.sum(), head.loss(logits[rows], labels[rows]))
    torch.testing.assert_close(head.loss(logits, labels), head.loss(logits[rows], labels[rows]))


def test_a_batch_of_unknown_labels_gives_zero():
    head = TaskHead(4, 2, "multi-label")
    assert head.loss(torch.randn(3, 2), torch.full((3, 2), math.nan)) == 0


@pytest.mark.parametrize("task", ["multi-class", "binary-class"])
def test_single_label_loss_is_minus_the_log_probability(task):
    head = TaskHead(4, 3, task)
    logits = torch.randn(5, 3)
    target = torch.tensor([0, 1, 2, 1, 0])
    loss = head.loss(logits, F.one_hot(target, 3).float())
    expected = -head.probs(logits)[torch.arange(5), target].log().mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_ordinal_thresholds_stay_in_order_and_probabilities_are_proper():
    torch.manual_seed(0)
    head = TaskHead(4, 5, "ordinal-regression")
    with torch.no_grad():
        head.raw_steps.normal_(std=3)
    logits = head(torch.randn(50, 4) * 3)
    assert (logits[:, 1:] <= logits[:, :-1]).all()
    probs = head.probs(logits)
    assert probs.min() >= 0
    assert torch.allclose(probs.sum(-1), torch.ones(50), atol=1e-5)


def test_ordinal_regression_learns_an_order():
    torch.manual_seed(0)
    head = TaskHead(1, 4, "ordinal-regression")
    x = torch.linspace(-2, 2, 200).unsqueeze(-1)
    grade = torch.bucketize(x.squeeze(), torch.tensor([-1.0, 0.0, 1.0]))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(x), F.one_hot(grade, 4).float()).backward()
        optimizer.step()
    assert (head.probs(head(x)).argmax(-1) == grade).float().mean() > 0.95


def test_too_few_classes_are_an_error():
    with pytest.raises(ValueError, match="a multi-class task needs more classes, got num_classes=1"):
        TaskHead(4, 1, "multi-class")
