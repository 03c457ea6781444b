"""A whole layer on a GPU: the launches of router, plan and experts, one after the other."""

import torch
from torch import Tensor

from moekit_kernels.configs import tile_heights
from moekit_kernels.moe_ffn import launches as experts
from moekit_kernels.plan.launches import plan_slots
from moekit_kernels.plan.schedule import schedule_bounds
from moekit_kernels.routed_ffn.kept import Kept, Sizes
from moekit_kernels.routed_ffn.operands import LayerStats, Needs, StatsGradients, Weights
from moekit_kernels.routing import launches_linear as router
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients, RouteOutputs
from moekit_kernels.runtime import current_target


def forward(
    x: Tensor, weights: Weights, options: RouteOptions, activation: str, keep: bool, keep_pre: bool, keep_hidden: bool
) -> tuple[Tensor, LayerStats, Kept | None]:
    """Returns output ``(T, D2)``, statistics, and with ``keep`` what :func:`backward` reads.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    memory = dict[str, Tensor]()
    integers = floats = None
    if keep:
        sizes = sizes_of(x, weights, options.top_k)
        integers = x.new_empty(sizes.num_integers, dtype=torch.int64)
        floats = x.new_empty(sizes.num_floats, dtype=torch.float32)
        memory = sizes.parts(integers, floats).memory()
    routed = router.forward(x, weights.gate, weights.gate_bias, options, None, keep, False, memory)
    plan = plan_slots(routed.ids, weights.gate.shape[0], routed.valid.unsqueeze(-1), memory=memory)
    output, pre, hidden = experts.forward(
        x, routed.gates, plan.order, weights.experts, activation, keep_pre, keep_hidden
    )
    stats = stats_of(routed, plan.tokens_per_expert, plan.dropped_per_expert)
    if integers is None or floats is None:
        return output, stats, None
    return output, stats, Kept(integers, floats, pre if keep_pre else None, hidden if keep_hidden else None)


def sizes_of(x: Tensor, weights: Weights, top_k: int) -> Sizes:
    """Returns the sizes of what is kept, on the device of ``x``."""
    num_tokens, num_experts = x.shape[0], weights.gate.shape[0]
    bounds = schedule_bounds(num_tokens * top_k, num_experts, tile_heights(current_target(x.device)))
    return Sizes(num_tokens, num_experts, top_k, bounds[-1])


def stats_of(routed: RouteOutputs, tokens_per_expert: Tensor, dropped_per_expert: Tensor) -> LayerStats:
    """Returns the statistics of a routing and its plan."""
    return LayerStats(
        tokens_per_expert,
        dropped_per_expert,
        routed.prob_sum,
        routed.gate_sum,
        routed.load,
        routed.logsumexp_sq_sum,
        routed.entropy_sum,
        routed.num_tokens,
        routed.nonfinite_tokens,
    )


def backward(
    grad: Tensor | None,
    of_stats: StatsGradients,
    x: Tensor,
    weights: Weights,
    kept: Kept,
    options: RouteOptions,
    activation: str,
    needs: Needs,
) -> list[Tensor | None]:
    """Returns the gradients of tokens (through the experts, and through the router), of gate, its bias and the experts.

    The two of the tokens are not added here: a compiler fuses the sum with what follows.

    Args:
        grad: Gradient of the output; None if only statistics have one.
        of_stats: Gradients of the statistics.
        x: As in :func:`forward`.
        weights: As there.
        kept: As it returned.
        options: As there.
        activation: As there.
        needs: Which gradients are needed.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    of_router = sizes_of(x, weights, options.top_k).parts(kept.integers, kept.floats)
    up_proj, down_proj, _, _ = weights.experts
    pre = x.new_empty(0, up_proj.shape[1]) if kept.pre is None else kept.pre
    hidden = x.new_empty(0, down_proj.shape[2]) if kept.hidden is None else kept.hidden
    d_x = d_gates = d_up = d_down = d_up_bias = d_down_bias = None
    if grad is not None:
        d_x, d_gates, d_up, d_down, d_up_bias, d_down_bias = experts.backward(
            grad, x, of_router.gates, of_router.order, weights.experts, pre, hidden, activation,
            needs.of_gates, needs.up, needs.down,
        )  # fmt: skip
    through_router = d_gate = d_gate_bias = None
    if needs.of_gates:
        through_router, d_gate, d_gate_bias = router.backward(
            RouteGradients(d_gates, None, None, *of_stats), x, weights.gate, weights.gate_bias, of_router.logits,
            of_router.valid, of_router.ids, None, options, (needs.x, needs.gate, needs.gate_bias),
        )  # fmt: skip
    return [d_x if needs.x else None, through_router, d_gate, d_gate_bias, d_up, d_down, d_up_bias, d_down_bias]


def gradient_shapes(x: Tensor, weights: Weights, has_grad: bool, needs: Needs) -> list[Tensor]:
    """Returns uninitialised gradients, those of :func:`backward` that are not None."""
    up, down = has_grad and needs.up, has_grad and needs.down
    up_proj, down_proj, up_bias, down_bias = weights.experts
    shapes = (
        (x, has_grad and needs.x),
        (x, needs.x),
        (weights.gate, needs.gate),
        (weights.gate_bias, needs.gate_bias),
        (up_proj, up),
        (down_proj, down),
        (up_bias, up),
        (down_bias, down),
    )
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) for t, needed in shapes if needed and t is not None
    ]
