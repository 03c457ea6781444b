"""The interface of banks of experts: from tokens, a plan and gates to one output per token."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from moekit.checks import check_floating, check_same_device
from moekit.plan import DispatchPlan, check_gates, check_tokens
from moekit.settings import SettingsModule


class Experts(SettingsModule, ABC):
    """A bank of experts.

    It receives the tokens *and* the plan, not permuted copies, so that a fused implementation can gather
    inside its first GEMM and weight inside its last one; a plain one calls
    :func:`~moekit.plan.dispatch` and :func:`~moekit.plan.combine` itself.

    Attributes:
        num_experts: ``E``.
        token_ndim: Trailing dimensions of the input that make one token: 1 for feature vectors, 3 for
            samples that are ``(C, H, W)`` maps.
        takes_pyramid: Whether the input is a sequence of tensors, the maps of a feature pyramid, each with the
            same tokens in its leading dimension.
        is_divided: Whether other ranks hold the other experts (:func:`~moekit.distributed.expert_parallel_`).
    """

    num_experts: int
    token_ndim: int = 1
    takes_pyramid: bool = False
    is_divided: ClassVar[bool] = False

    @property
    def local_experts(self) -> Sequence[int]:
        """The experts that this process holds: all, unless the bank is expert-parallel."""
        return range(self.num_experts)

    @abstractmethod
    def forward(self, x: Any, /, plan: DispatchPlan, gates: Float[Tensor, "A B"]) -> Float[Tensor, "T ..."]:
        """Computes ``out[t] = sum over the slots s of token t of gates[s] * expert_of_s(x[t])``.

        Args:
            x: Tokens ``(T, ...)``, or a sequence of such tensors where ``takes_pyramid``.
            plan: Which rows belong to which expert.
            gates: Weights, whose flat index is the slot.

        Returns:
            One output per token, ``(T, ...)``.

        Raises:
            ValueError: If ``x``, ``plan`` and ``gates`` do not fit each other or the experts.
        """


def check_plan(x: Tensor, plan: DispatchPlan, gates: Tensor, num_experts: int) -> None:
    """Checks that tokens, plan and gates belong together.

    Raises:
        ValueError: Naming what does not fit.
    """
    check_plan_experts(plan, num_experts)
    check_tokens(x, plan)
    check_gates(gates, plan)


def check_plan_experts(plan: DispatchPlan, num_experts: int) -> None:
    """Raises ``ValueError`` unless the plan is for so many experts."""
    if plan.offsets.shape[0] != num_experts + 1:
        raise ValueError(f"plan must be for {num_experts} experts, got one for {plan.offsets.shape[0] - 1}.")


def input_tensors(
    x: Tensor | Sequence[Tensor], *, token_ndim: int, takes_pyramid: bool
) -> tuple[list[Tensor], torch.Size]:
    """Splits the input of experts into tensors, one unless it is a pyramid, and their common leading dimensions.

    Args:
        x: The input.
        token_ndim: Trailing dimensions that make one token.
        takes_pyramid: Whether the experts take a sequence of maps.

    Raises:
        ValueError: If ``x`` is not what the experts take.
    """
    if isinstance(x, Tensor) and not takes_pyramid and x.is_floating_point() and x.ndim >= token_ndim:
        return [x], x.shape[: x.ndim - token_ndim]
    if isinstance(x, Tensor) == takes_pyramid:
        expected = "a sequence of feature maps" if takes_pyramid else "one tensor"
        got = "one tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"x must be {expected} for these experts, got {got}.")
    named = {"x": x} if isinstance(x, Tensor) else {f"x[{index}]": each for index, each in enumerate(x)}
    inputs = list(named.values())
    if not inputs:
        raise ValueError("x must hold at least one feature map, got none.")
    for name, each in named.items():
        check_floating(name, each)
        if each.ndim < token_ndim:
            raise ValueError(f"{name} must have at least {token_ndim} dimensions, got shape {tuple(each.shape)}.")
        check_same_device(name, each, "x[0]", inputs[0])
    lead = inputs[0].shape[: inputs[0].ndim - token_ndim]
    for name, each in named.items():
        if each.shape[: each.ndim - token_ndim] != lead:
            raise ValueError(
                f"{name} must have the leading dimensions of x[0], {tuple(lead)}, got shape {tuple(each.shape)}."
            )
    return inputs, lead
