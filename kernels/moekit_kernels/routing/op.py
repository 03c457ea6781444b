"""``moekit::route`` and ``moekit::route_backward``: schema, fake, autograd, choice of implementation."""

from typing import Any, NoReturn

from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.eager import operation
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Resolved, resolve_impl
from moekit_kernels.routing import launches
from moekit_kernels.routing.checks import LIMITS, check_arguments
from moekit_kernels.routing.options import GroupScore, RouteOptions, Scoring
from moekit_kernels.routing.outputs import FLOAT_OUTPUTS, RouteGradients, RouteOutputs, outputs
from moekit_kernels.routing.reference import Routed, decide_and_sum
from moekit_kernels.routing.sums import RoutingCounts, RoutingSums
from moekit_kernels.routing.vmap import one_after_another


@operation("moekit::route")
def _route(
    logits: Tensor,
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
    return launches.forward(logits, options, mask, with_logits, with_probs)


@operation("moekit::route_backward")
def _route_backward(
    d_gates: Tensor | None,
    d_finite_logits: Tensor | None,
    d_probs: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
) -> Tensor:
    grads = RouteGradients(d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum)
    return launches.backward(grads, logits, ids, mask, RouteOptions(ids.shape[1], scoring, renormalize, scaling_factor))


@_route.register_fake
def _(
    logits: Tensor,
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
    num_tokens, num_experts = logits.shape
    return outputs(logits, num_tokens, num_experts, top_k, with_logits, with_probs)


@_route_backward.register_fake
def _(
    d_gates: Tensor | None,
    d_finite_logits: Tensor | None,
    d_probs: Tensor | None,
    d_prob_sum: Tensor | None,
    d_gate_sum: Tensor | None,
    d_logsumexp_sq_sum: Tensor | None,
    d_entropy_sum: Tensor | None,
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
) -> Tensor:
    return logits.new_empty(*logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, ctx.scoring, ctx.renormalize, ctx.scaling_factor, _, _, _, _, mask, _, _ = inputs
    ctx.mark_non_differentiable(*(t for place, t in enumerate(output) if place not in FLOAT_OUTPUTS))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, output[1], mask)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    float_grads = [grads[place] for place in FLOAT_OUTPUTS]
    d_logits = None
    if any(grad is not None for grad in float_grads):
        refuse_forward_mode("route", *float_grads)
        d_logits = _route_backward(*float_grads, *ctx.saved_tensors, ctx.scoring, ctx.renormalize, ctx.scaling_factor)
    return d_logits, *(None,) * 11


def no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    """Raises: backward of a backward operation.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError('route has first-order gradients only; for higher orders use impl="reference".')


def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Saves nothing for a backward that raises."""


_route.register_autograd(_backward, setup_context=_save)
_route_backward.register_autograd(no_second_order, setup_context=save_nothing)
_route.register_vmap(one_after_another(_route.registered))
_route_backward.register_vmap(one_after_another(_route_backward.registered))


def routed_of(out: RouteOutputs, with_logits: bool, with_sums: bool | None) -> Routed:
    """Returns what the forward operations wrote as :class:`Routed`."""
    logits, probs = (out.logits, out.probs) if with_logits else (None, None)
    if with_sums is False:
        return Routed(out.gates, out.ids, logits, probs, out.valid, None, None)
    counts = RoutingCounts(out.tokens_per_expert, out.load, out.num_tokens, out.nonfinite_tokens)
    sums = RoutingSums(out.prob_sum, out.gate_sum, out.logsumexp_sq_sum, out.entropy_sum)
    return Routed(out.gates, out.ids, logits, probs, out.valid, counts, sums)


def resolve_route(impl: str, logits: Float[Tensor, "T E"], top_k: int) -> Resolved:
    """Returns which implementation ``impl`` means for these logits; see :mod:`moekit_kernels.impl`."""
    return resolve_impl(
        impl, LIMITS, logits.device, ("logits", logits.dtype), num_experts=logits.shape[-1], top_k=top_k
    )


def route(
    logits: Float[Tensor, "T E"],
    top_k: int,
    *,
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
    """Computes the decision of a top-k router and the sums over its tokens, reading the logits once each way.

    The same function as :func:`moekit_kernels.routing.route_reference`, which documents the arguments.

    Args:
        logits: Router logits.
        top_k: ``K``.
        scoring: How scores, gates and probabilities come from logits.
        renormalize: Whether the gates of a token are divided by their sum.
        scaling_factor: Multiplies the gates.
        selection_bias: Added to the scores for selection only.
        num_groups: Splits the experts into equal groups.
        topk_groups: Chooses within so many groups.
        group_score: How groups are ranked.
        mask: True for tokens that count in the sums.
        with_sums: Whether to return the sums. None: only if they cost nothing, which is by ``"triton"``.
        with_logits: Whether to return logits and probabilities, which are not written otherwise.
        impl: ``"reference"`` and ``"torch"``: plain PyTorch, with gradients of every order. ``"triton"``: one kernel,
            with first-order gradients, for up to 4096 experts and ``top_k`` up to 64. See :mod:`moekit_kernels.impl`.

    Returns:
        Decision and sums.

    Raises:
        ValueError: If the arguments do not fit each other, or ``impl`` does not fit the logits.

    Example:
        >>> routed = route(torch.tensor([[1.0, 3.0, 2.0]]), 2)
        >>> routed.ids.tolist(), routed.counts.tokens_per_expert.tolist()
        ([[1, 2]], [0, 1, 1])
    """
    options = RouteOptions(
        top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score
    )
    return route_by(options, logits, mask, with_sums, with_logits, impl)


def route_by(
    options: RouteOptions,
    logits: Float[Tensor, "T E"],
    mask: Bool[Tensor, "T"] | None,
    with_sums: bool | None,
    with_logits: bool,
    impl: Impl,
) -> Routed:
    """Computes :func:`route`, whose arguments these are, by options in one value."""
    resolved = resolve_route(impl, logits, options.top_k)
    check_arguments(logits, options, mask)
    if resolved == "reference":
        return decide_and_sum(logits, options, mask, bool(with_sums), with_logits)
    refuse_forward_mode("route", logits)
    if type(options.scaling_factor) is not float:
        options = options._replace(scaling_factor=float(options.scaling_factor))
    out = RouteOutputs(*_route(logits, *options, mask, with_logits, with_logits))
    return routed_of(out, with_logits, with_sums)
