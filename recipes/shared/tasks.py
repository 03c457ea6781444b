"""What a task means to a classifier: how many outputs, which loss, which probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.data.studies import Task


class TaskLoss(nn.Module):
    """Loss and probabilities of one of MedMNIST's four kinds of task, from whatever gave the logits.

    | task | logits | loss | probabilities |
    |---|---|---|---|
    | multi-label | C | binary cross entropy, unknown labels left out | sigmoid |
    | multi-class, binary-class | C | cross entropy, studies without a label left out | softmax |
    | ordinal-regression | C - 1 | binary cross entropy of every "above grade k", likewise | sigmoids' differences |

    Args:
        task: Which of the four.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task: Task = task
        self.ordinal = task == "ordinal-regression"

    def known_labels(self, labels: Tensor) -> Tensor:
        """Counts the labels of each study that the loss is a mean over.

        Args:
            labels: ``(B, C)``: 0, 1 or NaN (unknown).

        Returns:
            ``(B,)``: the known labels for a multi-label task; else 1, or 0 for a study that is not labelled.
        """
        known = ~labels.isnan()
        return known.sum(-1) if self.task == "multi-label" else known.all(-1).long()

    def losses(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Sums the loss of each study over its known labels.

        Args:
            logits: ``(B, C)``, or ``(B, C - 1)`` of an ordinal task.
            labels: ``(B, C)``: 0, 1 or NaN (unknown); one-hot for single-label tasks.
            class_weights: ``(2, C)``: weight of a label 0 and of a label 1 of each class; a study of a single-label
                task has the second one of its class.

        Returns:
            ``(B,)``; 0 for a study without a known label. Divided by the sum of :meth:`known_labels` their sum is
            the mean loss, over any number of batches.
        """
        logits = logits.float()
        if self.task == "multi-label":
            each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
            if class_weights is not None:
                each = each * torch.where(labels == 1, class_weights[1], class_weights[0])
            return (each * ~labels.isnan()).sum(-1)
        targets = labels.nan_to_num()
        if self.ordinal:
            above = targets.flip(-1).cumsum(-1).flip(-1)[:, 1:]
            each = F.binary_cross_entropy_with_logits(logits, above, reduction="none").mean(-1)
        else:
            each = F.cross_entropy(logits, targets.argmax(-1), reduction="none")
        if class_weights is not None:
            each = each * class_weights[1][targets.argmax(-1)]
        return each * self.known_labels(labels)

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Computes the mean loss over the known labels of a batch; 0 without any.

        Args:
            logits: As for :meth:`losses`.
            labels: As for :meth:`losses`.
            class_weights: As for :meth:`losses`.
        """
        return self.losses(logits, labels, class_weights).sum() / self.known_labels(labels).sum().clamp(min=1)

    def probs(self, logits: Tensor) -> Tensor:
        """Returns ``(B, C)`` probabilities, in float32."""
        logits = logits.float()
        if self.task == "multi-label":
            return logits.sigmoid()
        if self.ordinal:
            above = F.pad(logits.sigmoid(), (1, 0), value=1.0)
            return above - F.pad(above[:, 1:], (0, 1), value=0.0)
        return logits.softmax(-1)


class TaskHead(TaskLoss):
    """A linear classifier for one of the four tasks.

    Ordinal regression has one output: it is the proportional odds model, ``P(y > k) = sigmoid(s - theta_k)`` with
    ordered thresholds (McCullagh 1980).

    Args:
        dim: Width of the features.
        num_classes: ``C``.
        task: Which of the four.

    Raises:
        ValueError: If ``num_classes`` is too small for the task.
    """

    def __init__(self, dim: int, num_classes: int, task: Task) -> None:
        super().__init__(task)
        if num_classes < (1 if task == "multi-label" else 2):
            raise ValueError(f"a {task} task needs more classes, got num_classes={num_classes}.")
        self.linear = nn.Linear(dim, 1 if self.ordinal else num_classes)
        if self.ordinal:
            self.first_threshold = nn.Parameter(torch.tensor(-1.0))
            self.raw_steps = nn.Parameter(torch.zeros(num_classes - 2))

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, dim)`` to ``(B, C)`` logits, or to the ``(B, C - 1)`` logits of "above grade k"."""
        logits = self.linear(features)
        if not self.ordinal:
            return logits
        steps = torch.cat([self.first_threshold.view(1), F.softplus(self.raw_steps)])
        return logits - steps.cumsum(0).to(logits.dtype)
