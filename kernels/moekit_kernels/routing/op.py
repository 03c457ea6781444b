"""``moekit::route`` and ``moekit::route_backward``: schema, fake, autograd, choice of implementation."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Resolved, resolve_impl
from moekit_kernels.routing import launches
from moekit_kernels.routing.checks import LIMITS, check_arguments

from moekit_kernels.routing.options import RouteOptions, Scoring
from moekit_kernels.routing.reference import Routed, decide_and_sum
from moekit_kernels.routing.sums import RoutingSums

# The outputs that have a gradient, by their place.
from moekit_kernels.routing.outputs import FLOAT_OUTPUTS as _FLOAT_OUTPUTS, RouteGradients, RouteOutputs


@torch.library.custom_op("moekit::route", mutates_args=())
def _route(
    logits: Tensor,
    top_k: int,
    scoring: str,
    renormalize: bool,
    scaling_factor: float,
    selection_bias: Tensor | None,
    num_groups: int | None,
    topk_groups: int | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = RouteOptions(top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups)
    return launches.forward(logits, options, mask)


@torch.library.custom_op("moekit::route_backward", mutates_args=())
def _route_backward(
    d_gates: Tensor | None,
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
    grads = RouteGradients(d_gates, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum)
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
    mask: Tensor | None,
) -> RouteOutputs:
    return launches.outputs(logits, top_k)


@_route_backward.register_fake
def _(
    d_gates: Tensor | None,
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
    logits, _, ctx.scoring, ctx.renormalize, ctx.scaling_factor, _, _, _, mask = inputs
    ctx.mark_non_differentiable(*(t for place, t in enumerate(output) if place not in _FLOAT_OUTPUTS))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, output[1], mask)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    float_grads = [grads[place] for place in _FLOAT_OUTPUTS]
    d_logits = None
    if any(grad is not None for grad in float_grads):
        refuse_forward_mode("route", *float_grads)
        d_logits = _route_backward(*float_grads, *ctx.saved_tensors, ctx.scoring, ctx.renormalize, ctx.scaling_factor)
    return d_logits, *(None,) * 8


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError('route has first-order gradients only; for higher orders use impl="reference".')


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...


def _batched(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Returns a rule for ``torch.vmap``: one call after the other, because each has sums of its own."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def call(sample: int) -> Any:
            return op(*(a if d is None else a.select(d, sample) for a, d in zip(args, in_dims, strict=True)))

        outputs = [call(sample) for sample in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        fields = tuple(torch.stack(field) for field in zip(*outputs, strict=True))
        return fields, (0,) * len(fields)

    return rule


_route.register_autograd(_backward, setup_context=_save)
_route_backward.register_autograd(_no_second_order, setup_context=_save_nothing)
_route.register_vmap(_batched(_route))
_route_backward.register_vmap(_batched(_route_backward))


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
    mask: Bool[Tensor, "T"] | None = None,
    with_sums: bool | None = True,
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
        mask: True for tokens that count in the sums.
        with_sums: Whether to return the sums. None: only if they cost nothing, which is by ``"triton"``.
        impl: ``"reference"`` and ``"torch"``: plain PyTorch, with gradients of every order. ``"triton"``: two kernels,
            with first-order gradients, for up to 4096 experts and ``top_k`` up to 64. See :mod:`moekit_kernels.impl`.

    Returns:
        Decision and sums.

    Raises:
        ValueError: If the arguments do not fit each other, or ``impl`` does not fit the logits.

    Example:
        >>> routed = route(torch.tensor([[1.0, 3.0, 2.0]]), 2)
        >>> routed.ids.tolist(), routed.tokens_per_expert.tolist()
        ([[1, 2]], [0, 1, 1])
    """
    options = RouteOptions(top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups)
    resolved = resolve_route(impl, logits, top_k)
    check_arguments(logits, options, mask)
    if resolved == "reference":
        return decide_and_sum(logits, options, mask, bool(with_sums))
    refuse_forward_mode("route", logits)
    options = options._replace(scaling_factor=float(scaling_factor))
    gates_TK, ids_TK, probs_TE, valid_T, tokens_per_expert, *sums = _route(logits, *options, mask)
    finite_TE = torch.where(valid_T.unsqueeze(-1), logits.to(probs_TE.dtype), 0)
    if with_sums is False:
        return Routed(gates_TK, ids_TK, finite_TE, probs_TE, valid_T, None, None)
    return Routed(gates_TK, ids_TK, finite_TE, probs_TE, valid_T, tokens_per_expert, RoutingSums(*sums))
