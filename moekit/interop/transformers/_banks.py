"""Banks of experts that some blocks of ``transformers`` have, beyond those of moekit's own.

Letters: T tokens, D width, E experts, Z identity experts, K experts per token, N = T * K rows, L latent width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.experts.base import Experts, check_plan_experts
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


class IdentityExperts(Experts):
    """Experts beside ``Z`` more that return their input, which are not run but added as weighted tokens: LongCat.

    Args:
        experts: The experts that compute, of the lower ids.
        num_identity: ``Z``.
    """

    def __init__(self, experts: Experts, num_identity: int) -> None:
        super().__init__()
        self.experts = experts
        self.num_identity = num_identity
        self.num_experts = experts.num_experts + num_identity

    def forward(self, x: Float[Tensor, "T D"], plan: DispatchPlan, gates: Float[Tensor, "T K"]) -> Float[Tensor, "T D"]:
        """See :meth:`moekit.experts.base.Experts.forward`.

        Raises:
            ValueError: If the plan is for another number of experts, or of expert choice.
        """
        check_plan_experts(plan, self.num_experts)
        if plan.row_of_slot is None:
            raise ValueError("plan must be of token choice for identity experts, got one of expert choice.")
        computed, all_experts = self.num_experts - self.num_identity, self.num_experts
        # Rows are in the order of the experts, so those of the identity experts follow the others'.
        first, end = plan.offsets[computed], plan.offsets[all_experts]
        of_identity_TK = (plan.row_of_slot >= first) & (plan.row_of_slot < end)
        inner = plan._replace(
            offsets=plan.offsets[: computed + 1],
            tokens_per_expert=plan.tokens_per_expert[:computed],
            dropped_per_expert=plan.dropped_per_expert[:computed],
            tiles=None,
        )
        gates_TK = gates.view(plan.row_of_slot.shape)
        return self.experts(x, inner, gates) + identity_part(x, gates_TK, of_identity_TK)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_identity={self.num_identity}"


def identity_part(x: Tensor, gates: Tensor, of_identity: Tensor) -> Tensor:
    """Returns the tokens times the sum of those of their gates ``(T, K)`` that are of identity experts."""
    weight_T = torch.where(of_identity, gates, 0.0).sum(-1)
    return x * weight_T.to(x.dtype).unsqueeze(-1)
