"""Routing by a modality that is known: expert k for label k."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit import Routing
from moekit.routers import Router


class LabelRouter(Router):
    """Sends each image to the expert of its label, with gate and probability 1; it has no parameters.

    Args:
        num_experts: ``K``.
    """

    input_ndim = 0

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = 1

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Routing:
        """Routes ``B`` images.

        Args:
            x: ``(B,)`` labels, each in ``[0, K)``.
            mask: Changes no decision.

        Raises:
            ValueError: If a label is negative: an image without a known modality cannot be routed by it.
        """
        return label_routing(x, self.num_experts)


def label_routing(labels: Tensor, num_experts: int) -> Routing:
    """Makes the routing of known modalities: expert k for label k, with gate and probability 1.

    Args:
        labels: ``(B,)``, each in ``[0, num_experts)``.
        num_experts: ``K``.

    Raises:
        ValueError: If a label is negative: a pair without a known modality cannot be routed by it.
    """
    if bool((labels < 0).any()):
        raise ValueError(
            "a model that routes on the label needs the modality of every image, but some are not known: "
            "name them in the data, or use --route-on image."
        )
    probs = F.one_hot(labels, num_experts).float()
    valid = torch.ones_like(labels, dtype=torch.bool)
    return Routing(probs.new_ones(len(labels), 1), labels.unsqueeze(-1), None, probs, valid)
