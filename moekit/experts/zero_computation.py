"""Zero and identity experts beside others: chosen like any expert, and never run.

Letters: T tokens, E experts of all kinds, K experts per token, N rows and slots.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.checks import check_not_negative
from moekit.experts.base import Experts, check_plan_experts
from moekit.init import reset_parameters
from moekit.parts import experts_part
from moekit.plan import DispatchPlan, check_gates


class ZeroComputationExperts(Experts):
    """Experts beside ``num_zero`` that return zero and ``num_identity`` that return their input.

    The router chooses among all of them: ids begin with the experts that compute, those that return zero follow, then
    those that return their input. Slots of the latter two kinds are no rows of any expert that computes: an easy token
    costs fewer products. Identity experts add ``x`` times the sum of their gates, in float32 or wider; zero experts add
    nothing, so only the other gates of a renormalising router feel them. Whatever counts experts counts all: load,
    losses, records, and a capacity factor of the layer, whose limit holds for each kind alike.

    LongCat-Flash, https://arxiv.org/abs/2509.01322, section 2.1 (identity); MoE++, https://arxiv.org/abs/2410.07348
    (both, and further kinds).

    Args:
        experts: The experts that compute: any bank.
        num_zero: Number of experts that return zero.
        num_identity: Number of experts that return their input.

    Raises:
        ValueError: If a number is negative, ``experts`` are none, or there are identity experts beside experts over
            pyramids, whose output is no input.

    Example:
        >>> experts = ZeroComputationExperts(FFNExperts(64, 128, 8), num_identity=4)
        >>> moe = SparseMoE(TopKRouter(64, num_experts=12, top_k=2), experts)
        >>> moe(torch.randn(10, 64)).stats.tokens_per_expert.shape
        torch.Size([12])
    """

    def __init__(self, experts: Experts, *, num_zero: int = 0, num_identity: int = 0) -> None:
        super().__init__()
        check_not_negative("num_zero", num_zero)
        check_not_negative("num_identity", num_identity)
        part = experts_part(experts)
        if part.takes_pyramid and num_identity:
            raise ValueError(
                f"num_identity must be 0 beside experts over pyramids, whose output is no input, got {num_identity}."
            )
        self.experts = experts
        self.num_zero = num_zero
        self.num_identity = num_identity
        self.num_computed = part.num_experts
        self.num_experts = part.num_experts + num_zero + num_identity
        self.token_ndim = part.token_ndim
        self.takes_pyramid = part.takes_pyramid
        names = ("num_zero", "num_identity", "num_computed", "num_experts", "token_ndim", "takes_pyramid")
        self._make_read_only(*names)

    @property
    def impl(self) -> str:
        """Implementation of the experts that compute; ``"auto"`` for a bank without a choice."""
        return getattr(self.experts, "impl", "auto")

    def reset_parameters(self) -> None:
        """Draws the weights of the experts anew."""
        reset_parameters(self.experts)

    def forward(self, x: Any, /, plan: DispatchPlan, gates: Float[Tensor, "A B"]) -> Float[Tensor, "T ..."]:
        """Computes the gate-weighted sum of every token's experts.

        Args:
            x: Tokens ``(T, ...)``, as the experts take them.
            plan: Which rows belong to which expert, of all kinds.
            gates: Weights, whose flat index is the slot.

        Returns:
            One output per token; zero for a token without an expert.

        Raises:
            ValueError: If ``x``, ``plan`` and ``gates`` do not fit each other or the experts, or the output of these
                has not the shape of ``x`` beside identity experts.
        """
        check_plan_experts(plan, self.num_experts)
        check_gates(gates, plan)
        computed = self.num_computed
        # Rows are in the order of the experts, so the others' follow those of the experts that compute, which take
        # what is beyond their offsets for unassigned rows.
        inner = plan._replace(
            offsets=plan.offsets[: computed + 1],
            tokens_per_expert=plan.tokens_per_expert[:computed],
            dropped_per_expert=plan.dropped_per_expert[:computed],
            tiles=None,
        )
        y: Tensor = self.experts(x, inner, gates)
        if self.num_identity == 0:
            return y
        if y.shape != x.shape:
            raise ValueError(
                f"experts must return the shape of x beside identity experts, {tuple(x.shape)}, got {tuple(y.shape)}: "
                "leave num_identity at 0."
            )
        first, end = plan.offsets[computed + self.num_zero], plan.offsets[self.num_experts]
        return add_identity(y, x, *_gates_of_rows(plan, gates, first, end))

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, num_zero={self.num_zero}, num_identity={self.num_identity}"


def add_identity(
    y: Float[Tensor, "T ..."], x: Float[Tensor, "T ..."], weight: Float[Tensor, "T"], chosen: Bool[Tensor, "T"]
) -> Float[Tensor, "T ..."]:
    """Computes ``y + weight * x`` in float32 or wider, rounded once to the dtype of ``y``.

    Args:
        y: Output of the other experts.
        x: Tokens.
        weight: Sum of the gates of identity experts.
        chosen: True for tokens that have such an expert; what others hold, NaN too, reaches nothing.
    """
    column = (-1, *(1,) * (x.ndim - 1))
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).view(column)
    return (y + weight * torch.where(chosen.view(column), x, 0)).to(y.dtype)


def _gates_of_rows(
    plan: DispatchPlan, gates: Tensor, first: Tensor, end: Tensor
) -> tuple[Float[Tensor, "T"], Bool[Tensor, "T"]]:
    """Returns for each token the sum of those of its gates whose rows are from ``first`` to ``end``, and if it has any.

    Under expert choice a token has no fixed number of slots.
    """
    if plan.row_of_slot is not None:
        row_TK = plan.row_of_slot
        own_TK = (row_TK >= first) & (row_TK < end)
        return torch.where(own_TK, gates.view(row_TK.shape), 0).sum(-1), own_TK.any(-1)
    row_N = torch.arange(plan.token_of_row.shape[0], device=gates.device)
    own_N = (row_N >= first) & (row_N < end)
    own_gates_N = torch.where(own_N, plan.order.by_row(gates), 0)
    weight_T = own_gates_N.new_zeros(plan.num_tokens).index_add(0, plan.token_of_row, own_gates_N)
    return weight_T, row_N.new_zeros(plan.num_tokens).index_add(0, plan.token_of_row, own_N.long()) > 0
