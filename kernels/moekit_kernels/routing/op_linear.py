"""``moekit::route_linear`` and ``moekit::route_linear_backward``: the gate's linear layer and routing in one."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.autocast import no_autocast
from moekit_kernels.eager import operation
from moekit_kernels.flops import register_flops, route_linear_backward_flops, route_linear_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Resolved, resolve_impl
from moekit_kernels.routing import launches_linear as launches
from moekit_kernels.routing.checks import LINEAR_LIMITS, check_linear, check_options
from moekit_kernels.routing.op import no_second_order, routed_of, save_nothing
from moekit_kernels.routing.options import GroupScore, RouteOptions, Scoring
from moekit_kernels.routing.outputs import FLOAT_OUTPUTS, RouteGradients, RouteOutputs, outputs
from moekit_kernels.routing.reference import Routed, decide_and_sum
from moekit_kernels.routing.vmap import one_after_another

_LOGITS, _VALID, _IDS = (RouteOutputs._fields.index(name) for name in ("logits", "valid", "ids"))


@operation("moekit::route_linear")
def _route_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    selection_bias: Tensor | None,
    num_groups: int | None,
    topk_groups: int | None,
    group_score: str,
    mask: Tensor | None,
    with_logits: bool,
    with_probs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = RouteOptions(
        top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score
    )
    return launches.forward(x, weight, bias, options, mask, with_logits, with_probs)


@operation("moekit::route_linear_backward")
def _route_linear_backward(
    d_gates: Tensor | None,
    d_finite_logits: Tensor | None,
    d_probs: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor,
    valid: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    input_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = RouteGradients(d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum)
    options = RouteOptions(ids.shape[1], scoring, renormalize, scaling_factor)
    needs = (input_grad, weight_grad, bias_grad)
    gradients = launches.backward(grads, x, weight, bias, logits, valid, ids, mask, options, needs)
    d_x, d_weight, d_bias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return d_x, d_weight, d_bias


@_route_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    selection_bias: Tensor | None,
    num_groups: int | None,
    topk_groups: int | None,
    group_score: str,
    mask: Tensor | None,
    with_logits: bool,
    with_probs: bool,
) -> RouteOutputs:
    return outputs(x, x.shape[0], weight.shape[0], top_k, with_logits, with_probs)


@_route_linear_backward.register_fake
def _(
    d_gates: Tensor | None,
    d_finite_logits: Tensor | None,
    d_probs: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor,
    valid: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    input_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = (0,)
    return (
        x.new_empty(x.shape if input_grad else nothing),
        weight.new_empty(weight.shape) if weight_grad else x.new_empty(nothing),
        bias.new_empty(bias.shape) if bias is not None and bias_grad else x.new_empty(nothing),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.scoring, ctx.renormalize, ctx.scaling_factor, _, _, _, _, mask, _, _ = inputs
    ctx.mark_non_differentiable(*(t for place, t in enumerate(output) if place not in FLOAT_OUTPUTS))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, output[_LOGITS], output[_VALID], output[_IDS], mask)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    float_grads = [grads[place] for place in FLOAT_OUTPUTS]
    d_x = d_weight = d_bias = None
    needs = ctx.needs_input_grad[:3]
    if any(needs) and any(grad is not None for grad in float_grads):
        refuse_forward_mode("route", *float_grads)
        saved = ctx.saved_tensors
        if saved[3].ndim < 2:
            raise RuntimeError(
                "route_linear has gradients only where with_logits is True: it keeps the logits for them."
            )
        options = (ctx.scoring, ctx.renormalize, ctx.scaling_factor)
        gradients = _route_linear_backward(*float_grads, *saved, *options, *needs)
        d_x, d_weight, d_bias = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return d_x, d_weight, d_bias, *(None,) * 11


_route_linear.register_autograd(_backward, setup_context=_save)
_route_linear_backward.register_autograd(no_second_order, setup_context=save_nothing)
_route_linear.register_vmap(one_after_another(_route_linear.registered))
_route_linear_backward.register_vmap(one_after_another(_route_linear_backward.registered))
register_flops("route_linear", route_linear_flops)
register_flops("route_linear_backward", route_linear_backward_flops)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    with no_autocast(x.device.type):
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def resolve_route_linear(impl: str, x: Tensor, weight: Tensor, top_k: int) -> Resolved:
    """Returns which implementation ``impl`` means for these operands; see :mod:`moekit_kernels.impl`."""
    return resolve_impl(
        impl,
        LINEAR_LIMITS,
        x.device,
        ("x", x.dtype),
        ("weight", weight.dtype),
        num_experts=weight.shape[0],
        top_k=top_k,
    )


def route_linear(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, "E D"],
    top_k: int,
    *,
    bias: Float[Tensor, "E"] | None = None,
    scoring: Scoring = "softmax",
    renormalize: bool = True,
    scaling_factor: float = 1.0,
    selection_bias: Float[Tensor, "E"] | None = None,
    num_groups: int | None = None,
    topk_groups: int | None = None,
    group_score: GroupScore = "top2_sum",
    mask: Bool[Tensor, "T"] | None = None,
    with_sums: bool | None = True,
    with_logits: bool = True,
    impl: Impl = "auto",
) -> Routed:
    """Computes ``route(x W^T + bias)`` with logits as exact as float32's, reading ``x`` once, in its own dtype.

    The tokens are not copied to float32, and no product is rounded to less: an operand of another dtype than bfloat16
    is split into bfloat16 parts that add up to it. Autocast changes nothing.

    Args:
        x: Tokens.
        weight: Of the gate.
        top_k: ``K``.
        bias: Of the gate.
        scoring: See :func:`~moekit_kernels.routing.route_reference`, as of all that follow.
        renormalize: Whether the gates of a token are divided by their sum.
        scaling_factor: Multiplies the gates.
        selection_bias: Added to the scores for selection only.
        num_groups: Splits the experts into equal groups.
        topk_groups: Chooses within so many groups.
        group_score: How groups are ranked.
        mask: True for tokens that count in the sums.
        with_sums: Whether to return the sums. None: only if they cost nothing, which is by ``"triton"``.
        with_logits: Whether to return logits and probabilities. Without gradients, they are then not written.
        impl: ``"reference"`` and ``"torch"``: plain PyTorch, with gradients of every order. ``"triton"``: one kernel
            each way, with first-order gradients, for up to 256 experts and ``top_k`` up to 64. See
            :mod:`moekit_kernels.impl`.

    Returns:
        Decision and sums.

    Raises:
        ValueError: If the arguments do not fit each other, or ``impl`` does not fit the operands.

    Example:
        >>> route_linear(torch.eye(3), torch.tensor([[1.0, 0, 2], [0, 1, 3]]), 1).ids.tolist()
        [[0], [1], [1]]
    """
    options = RouteOptions(
        top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score
    )
    return route_linear_by(options, x, weight, bias, mask, with_sums, with_logits, impl)


def route_linear_by(
    options: RouteOptions,
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, "E D"],
    bias: Float[Tensor, "E"] | None,
    mask: Bool[Tensor, "T"] | None,
    with_sums: bool | None,
    with_logits: bool,
    impl: Impl,
) -> Routed:
    """Computes :func:`route_linear`, whose arguments these are, by options in one value."""
    check_linear(x, weight, bias)
    resolved = resolve_route_linear(impl, x, weight, options.top_k)
    check_options(x.shape[0], weight.shape[0], "the weight", x.device, options, mask)
    if resolved == "reference":
        return decide_and_sum(_linear(x, weight, bias), options, mask, bool(with_sums), with_logits)
    refuse_forward_mode("route", x, weight, bias)
    if type(options.scaling_factor) is not float:
        options = options._replace(scaling_factor=float(options.scaling_factor))
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    kept = with_logits or trained
    out = RouteOutputs(*_route_linear(x, weight, bias, *options, mask, kept, with_logits))
    return routed_of(out, with_logits, with_sums)
