"""What every bank of experts is: a module from tokens, a plan and gates to one output per token."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from moekit.plan import DispatchPlan, check_gates, check_tokens


class Experts(nn.Module, ABC):
    """A bank of experts.

    It receives the tokens *and* the plan, not permuted copies, so that a fused implementation can gather
    inside its first GEMM and weight inside its last one; a plain one calls
    :func:`~moekit.plan.dispatch` and :func:`~moekit.plan.combine` itself.

    Attributes:
        num_experts: ``E``.
        token_ndim: Trailing dimensions of the input that make one token: 1 for feature vectors, 3 for
            samples that are ``(C, H, W)`` maps.
    """

    num_experts: int
    token_ndim: int = 1

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "T ..."], plan: DispatchPlan, gates: Float[Tensor, "A B"]
    ) -> Float[Tensor, "T ..."]:
        """Computes ``out[t] = sum over the slots s of token t of gates[s] * expert_of_s(x[t])``.

        Args:
            x: Tokens.
            plan: Which rows belong to which expert.
            gates: Weights, whose flat index is the slot.
        """


def check_plan(x: Tensor, plan: DispatchPlan, gates: Tensor, num_experts: int) -> None:
    """Checks that tokens, plan and gates belong together.

    Raises:
        ValueError: Naming what does not fit.
    """
    if plan.offsets.shape[0] != num_experts + 1:
        raise ValueError(f"plan must be for {num_experts} experts, got one for {plan.offsets.shape[0] - 1}.")
    check_tokens(x, plan)
    check_gates(gates, plan)
