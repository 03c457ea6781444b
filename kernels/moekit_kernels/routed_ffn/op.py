"""``moekit::routed_ffn`` and ``moekit::routed_ffn_backward``: schema, fake, autograd."""

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from moekit_kernels.eager import operation
from moekit_kernels.flops import register_flops, routed_ffn_backward_flops, routed_ffn_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.moe_ffn.op import Recompute
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.routed_ffn.kept import Kept
from moekit_kernels.routed_ffn.operands import LayerStats, Needs, StatsGradients, Weights
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import outputs

# Output and statistics; what is kept follows.
_NUM_RETURNED = 1 + len(LayerStats._fields)
_DIFFERENTIABLE = (0, *(1 + LayerStats._fields.index(name) for name in StatsGradients._fields))
_X, _GATE, _GATE_BIAS, _UP, _DOWN, _UP_BIAS, _DOWN_BIAS = 0, 1, 2, 4, 5, 6, 7
_NUM_TENSORS, _NUM_ARGUMENTS = 8, 19


@operation("moekit::routed_ffn")
def _routed_ffn(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    selection_bias: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    num_groups: int | None,
    topk_groups: int | None,
    group_score: str,
    activation: str,
    keep: bool,
    keep_pre: bool,
    keep_hidden: bool,
) -> list[Tensor]:
    from moekit_kernels.routed_ffn import launches

    options = RouteOptions(
        top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score
    )
    weights = Weights(gate, gate_bias, ExpertWeights(up_proj, down_proj, up_bias, down_bias))
    output, stats, kept = launches.forward(x, weights, options, activation, keep, keep_pre, keep_hidden)
    return [output, *stats, *(t for t in kept or () if t is not None)]


@operation("moekit::routed_ffn_backward")
def _routed_ffn_backward(
    grad: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    integers: Tensor,
    floats: Tensor,
    pre: Tensor | None,
    hidden: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    activation: str,
    x_grad: bool,
    gate_grad: bool,
    gate_bias_grad: bool,
    up_grad: bool,
    down_grad: bool,
) -> list[Tensor]:
    from moekit_kernels.routed_ffn import launches

    weights = Weights(gate, gate_bias, ExpertWeights(up_proj, down_proj, up_bias, down_bias))
    kept = Kept(integers, floats, pre, hidden)
    gradients = launches.backward(
        grad,
        StatsGradients(d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum),
        x,
        weights,
        kept,
        RouteOptions(top_k, scoring, renormalize, scaling_factor),
        activation,
        Needs(x_grad, gate_grad, gate_bias_grad, up_grad, down_grad),
    )
    return [gradient for gradient in gradients if gradient is not None]


@_routed_ffn.register_fake
def _(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    selection_bias: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    num_groups: int | None,
    topk_groups: int | None,
    group_score: str,
    activation: str,
    keep: bool,
    keep_pre: bool,
    keep_hidden: bool,
) -> list[Tensor]:
    from moekit_kernels.routed_ffn.launches import sizes_of, stats_of

    num_tokens, num_experts = x.shape[0], gate.shape[0]
    routed = outputs(x, num_tokens, num_experts, top_k, False, False)
    of_plan = (torch.empty_like(routed.tokens_per_expert) for _ in range(2))
    returned = [x.new_empty(num_tokens, down_proj.shape[1]), *stats_of(routed, *of_plan)]
    if keep:
        weights = Weights(gate, gate_bias, ExpertWeights(up_proj, down_proj, up_bias, down_bias))
        sizes = sizes_of(x, weights, top_k)
        returned.append(x.new_empty(sizes.num_integers, dtype=torch.int64))
        returned.append(x.new_empty(sizes.num_floats, dtype=torch.float32))
    if keep_pre:
        returned.append(x.new_empty(num_tokens * top_k, up_proj.shape[1]))
    if keep_hidden:
        returned.append(x.new_empty(num_tokens * top_k, down_proj.shape[2]))
    return returned


@_routed_ffn_backward.register_fake
def _(
    grad: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    integers: Tensor,
    floats: Tensor,
    pre: Tensor | None,
    hidden: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    activation: str,
    x_grad: bool,
    gate_grad: bool,
    gate_bias_grad: bool,
    up_grad: bool,
    down_grad: bool,
) -> list[Tensor]:
    from moekit_kernels.routed_ffn.launches import gradient_shapes

    weights = Weights(gate, gate_bias, ExpertWeights(up_proj, down_proj, up_bias, down_bias))
    needs = Needs(x_grad, gate_grad, gate_bias_grad, up_grad, down_grad)
    return gradient_shapes(x, weights, grad is not None, needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors = [t for place, t in enumerate(inputs[:_NUM_TENSORS]) if place != 3]
    ctx.top_k, ctx.scoring, ctx.renormalize, ctx.scaling_factor, _, _, _, ctx.activation = inputs[_NUM_TENSORS:-3]
    kept = iter(output[_NUM_RETURNED:])
    saved = [next(kept) if is_kept else None for is_kept in (inputs[-3], *inputs[-3:])]
    ctx.mark_non_differentiable(*(t for place, t in enumerate(output) if place not in _DIFFERENTIABLE))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *saved)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * _NUM_ARGUMENTS
    float_grads = [grads[place] for place in _DIFFERENTIABLE]
    if all(grad is None for grad in float_grads):
        return tuple(gradients)
    refuse_forward_mode("routed_ffn", *float_grads)
    _, gate, gate_bias, *weights = ctx.saved_tensors[: _NUM_TENSORS - 1]
    needs = ctx.needs_input_grad
    requested = Needs(
        needs[_X], needs[_GATE], needs[_GATE_BIAS], needs[_UP] or needs[_UP_BIAS], needs[_DOWN] or needs[_DOWN_BIAS]
    )
    options = (ctx.top_k, ctx.scoring, ctx.renormalize, ctx.scaling_factor, ctx.activation)
    computed = iter(_routed_ffn_backward(*float_grads, *ctx.saved_tensors, *options, *requested))
    has_grad = grads[0] is not None
    through_experts = next(computed) if has_grad and requested.x else None
    through_router = next(computed) if requested.x else None
    if through_experts is None or through_router is None:
        gradients[_X] = through_router
    else:
        gradients[_X] = through_experts + through_router
    products = [(_UP, weights[0], requested.up), (_DOWN, weights[1], requested.down)]
    biases = [(_UP_BIAS, weights[2], requested.up), (_DOWN_BIAS, weights[3], requested.down)]
    router = [(_GATE, gate, requested.gate), (_GATE_BIAS, gate_bias, requested.gate_bias)]
    experts = [(place, t, has_grad and need) for place, t, need in (*products, *biases)]
    for place, tensor, need in (*router, *experts):
        if tensor is not None and need:
            gradient = next(computed)
            gradients[place] = gradient if needs[place] else None
    return tuple(gradients)


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(
        'routed_ffn has first-order gradients only; for higher orders build the layer with impl="reference".'
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_routed_ffn.register_autograd(_backward, setup_context=_save)
_routed_ffn_backward.register_autograd(_no_second_order, setup_context=_save_nothing)
register_flops("routed_ffn", routed_ffn_flops)
register_flops("routed_ffn_backward", routed_ffn_backward_flops)


# Read by compiled code in place of the module's attributes, each of which would be a guard.
_operator = torch.ops.moekit.routed_ffn.default


def routed_ffn(
    x: Float[Tensor, "T D"],
    gate: Float[Tensor, "E D"],
    gate_bias: Float[Tensor, "E"] | None,
    experts: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    options: RouteOptions,
    activation: str,
    recompute: Recompute = "activation",
) -> list[Tensor]:
    """Computes a whole layer on Triton kernels as one operation: router, plan and experts.

    The same launches, in the same order and with the same numbers, as
    :func:`~moekit_kernels.routing.route_linear`, :func:`~moekit_kernels.plan.plan_dispatch` and
    :func:`~moekit_kernels.moe_ffn.moe_ffn`. For code under ``torch.compile``, which pays for each operation and for
    each function, class and global that it traces.

    Args:
        x: Tokens.
        gate: Weight of the router's linear layer.
        gate_bias: Its bias.
        experts: The fields of :class:`~moekit_kernels.moe_ffn.ExpertWeights`, in the dtype of ``x``.
        options: Of the routing.
        activation: Name of an :class:`~moekit_kernels.activations.Activation` with Triton functions.
        recompute: See :func:`~moekit_kernels.moe_ffn.moe_ffn`.

    Returns:
        Output ``(T, D2)`` in the dtype of ``x``, the fields of :class:`LayerStats` in their order, and what the
        backward pass needs. Gradients are of the first order.
    """
    refuse_forward_mode("routed_ffn", x)
    keep = x.requires_grad or gate.requires_grad or (gate_bias is not None and gate_bias.requires_grad)
    for weight in experts:
        if weight is not None and weight.requires_grad:
            keep = True
    keep = keep and torch.is_grad_enabled()
    top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score = options
    return _operator(
        x, gate, gate_bias, selection_bias, *experts, top_k, scoring, renormalize, float(scaling_factor), num_groups,
        topk_groups, group_score, activation, keep, keep and recompute != "all", keep and recompute == "none",
    )  # fmt: skip
