"""Banks of experts that some blocks of ``transformers`` have, beyond those of moekit's own.

Letters: T tokens, D width, K experts per token, L latent width.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from moekit.experts.base import Experts
from moekit.plan import DispatchPlan


class LatentExperts(Experts):
    """Experts of another width than the tokens, between two linear layers that every token passes: Nemotron-H.

    Args:
        dim: Width of the tokens, ``D``.
        experts: Experts of width ``L``.
        latent_dim: ``L``.
        bias: Whether the linear layers have biases.
        place: Device and dtype of the linear layers.
    """

    def __init__(self, dim: int, experts: Experts, latent_dim: int, *, bias: bool, **place: Any) -> None:
        super().__init__()
        self.num_experts = experts.num_experts
        self.into_latent = nn.Linear(dim, latent_dim, bias=bias, **place)
        self.experts = experts
        self.out_of_latent = nn.Linear(latent_dim, dim, bias=bias, **place)

    def forward(self, x: Float[Tensor, "T D"], plan: DispatchPlan, gates: Float[Tensor, "T K"]) -> Float[Tensor, "T D"]:
        """See :meth:`moekit.experts.base.Experts.forward`."""
        return self.out_of_latent(self.experts(self.into_latent(x), plan, gates))
