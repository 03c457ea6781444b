"""How a routing chooses experts and weights them, as one value that travels whole."""

from typing import Literal, NamedTuple

from torch import Tensor

Scoring = Literal["softmax", "topk_softmax", "sigmoid", "sqrt_softplus"]
SCORINGS = ("softmax", "topk_softmax", "sigmoid", "sqrt_softplus")
GroupScore = Literal["top2_sum", "max"]
GROUP_SCORES = ("top2_sum", "max")


class RouteOptions(NamedTuple):
    """Options of a routing; :func:`~moekit_kernels.routing.route_reference` describes them."""

    top_k: int
    scoring: str = "softmax"
    renormalize: bool = True
    scaling_factor: float = 1.0
    selection_bias: Tensor | None = None
    num_groups: int | None = None
    topk_groups: int | None = None
    group_score: str = "top2_sum"
