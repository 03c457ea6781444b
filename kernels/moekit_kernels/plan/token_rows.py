"""Tokens copied into the rows of a plan."""

from jaxtyping import Float
from torch import Tensor

from moekit_kernels.plan.checks import check_tokens
from moekit_kernels.plan.dispatch_plan import DispatchPlan


def dispatch(x: Float[Tensor, "T *D"], plan: DispatchPlan) -> Float[Tensor, "N *D"]:
    """Copies tokens into rows: ``rows[r] = x[plan.token_of_row[r]]``.

    Args:
        x: Tokens, of any trailing shape.
        plan: The plan.

    Returns:
        One row per slot, in the order of the experts.

    Raises:
        ValueError: If ``x`` does not have the plan's number of tokens.

    Example:
        >>> plan = plan_dispatch(torch.tensor([[1], [0]]), num_experts=2)
        >>> dispatch(torch.tensor([[10.0], [20.0]]), plan).flatten().tolist()
        [20.0, 10.0]
    """
    check_tokens(x, plan)
    return x.index_select(0, plan.token_of_row)
