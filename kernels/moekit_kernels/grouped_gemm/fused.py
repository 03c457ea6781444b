"""``moekit::grouped_gemm``: the grouped GEMM with gather, activation, gates and output order in one kernel."""

from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.autocast import autocast
from moekit_kernels.availability import triton_is_installed
from moekit_kernels.flops import grouped_gemm_backward_flops, grouped_gemm_flops, register_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.grouped_gemm.checks import check_operands
from moekit_kernels.grouped_gemm.fused_reference import grouped_gemm_reference
from moekit_kernels.precision import KERNEL_DTYPES, check_kernel_dtype

Impl = Literal["auto", "reference", "torch", "triton"]
IMPLS = ("auto", "reference", "torch", "triton")


@torch.library.custom_op("moekit::grouped_gemm", mutates_args=())
def _grouped_gemm(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    token: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    activation: str | None,
    by_slot: bool,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    from moekit_kernels.grouped_gemm import launches
    from moekit_kernels.plan.schedule import tile_schedules

    num_rows = x.shape[0] if token is None else token.shape[0]
    config = launches.forward_config(x, weight, num_rows, activation)
    (tiles,) = tile_schedules(offsets, num_rows, (config.block_m,), dead_tiles=True)
    return launches.forward(
        x, weight, offsets, tiles, config, num_rows, bias=bias, activation=activation, gather=token,
        scatter=slot if by_slot else None, gates=None if gates is None else gates.reshape(-1), slot=slot,
        keep_pre=keep_pre,
    )  # fmt: skip


@torch.library.custom_op("moekit::grouped_gemm_backward", mutates_args=())
def _grouped_gemm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    token: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    pre: Tensor,
    activation: str | None,
    by_slot: bool,
    wanted: list[bool],
) -> list[Tensor]:
    from moekit_kernels.combine import launches as combine
    from moekit_kernels.grouped_gemm import launches
    from moekit_kernels.plan.schedule import tile_schedules

    num_rows = grad.shape[0]
    scatter = slot if by_slot else None
    found: list[Tensor] = []
    dpre, dy_gather = grad, scatter
    if activation is not None or gates is not None:
        flat = None if gates is None else gates.reshape(-1)
        dpre, dgates = launches.epilogue_grad(grad, pre, offsets, activation, gates=flat, scatter=scatter, slot=slot)
        dy_gather = None
        if wanted[3] and dgates is not None and gates is not None:
            found.append(dgates.view(gates.shape))
    if wanted[2]:
        found.insert(0, launches.bias_grad(dpre, offsets, gather=dy_gather))
    if wanted[1]:
        found.insert(0, launches.weight_grad(dpre, x, offsets, num_rows, dy_gather=dy_gather, x_gather=token))
    if wanted[0]:
        config = launches.forward_config(x, weight, num_rows, None)
        (tiles,) = tile_schedules(offsets, num_rows, (config.block_m,), dead_tiles=True)
        dx, _ = launches.forward(dpre, weight.mT, offsets, tiles, config, num_rows, gather=dy_gather)
        if token is not None:
            by_token, rows = token.sort(stable=True)
            starts = torch.searchsorted(by_token, torch.arange(x.shape[0] + 1, device=x.device))
            dx = combine.forward(dx, rows, starts, None, None, None, x.shape[0])
        found.insert(0, dx)
    return found


@_grouped_gemm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    token: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    activation: str | None,
    by_slot: bool,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    num_rows = x.shape[0] if token is None else token.shape[0]
    width = weight.shape[1] // 2 if activation is not None and ACTIVATIONS[activation].gated else weight.shape[1]
    return x.new_empty(num_rows, width), x.new_empty(num_rows if keep_pre else 0, weight.shape[1])


@_grouped_gemm_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    token: Tensor | None,
    gates: Tensor | None,
    slot: Tensor | None,
    pre: Tensor,
    activation: str | None,
    by_slot: bool,
    wanted: list[bool],
) -> list[Tensor]:
    given = zip((x, weight, bias, gates), wanted, strict=True)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t, want in given if want and t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, offsets, bias, token, gates, slot, ctx.activation, ctx.by_slot, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, offsets, bias, token, gates, slot, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 10
    if grad is None:
        return tuple(gradients)
    refuse_forward_mode("grouped_gemm", grad)
    places = (0, 1, 3, 5)  # x, weight, bias, gates
    wanted = [ctx.needs_input_grad[place] for place in places]
    found = iter(_grouped_gemm_backward(grad, *ctx.saved_tensors, ctx.activation, ctx.by_slot, wanted))
    for place, want in zip(places, wanted, strict=True):
        gradients[place] = next(found) if want else None
    return tuple(gradients)


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError('grouped_gemm has first-order gradients only; for higher orders use impl="torch".')


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_grouped_gemm.register_autograd(_backward, setup_context=_save)
_grouped_gemm_backward.register_autograd(_no_second_order, setup_context=_save_nothing)
register_flops("grouped_gemm", grouped_gemm_flops)
register_flops("grouped_gemm_backward", grouped_gemm_backward_flops)


def resolve_impl(impl: str, device: torch.device, dtype: torch.dtype) -> Literal["reference", "torch", "triton"]:
    """What ``impl`` means for operands on ``device`` of the widest ``dtype`` among them.

    ``"auto"`` is ``"triton"`` on a GPU (CUDA or HIP) in bfloat16, float16 and float32, if Triton is installed;
    ``"reference"`` there in float64; ``"torch"`` everywhere else. An explicit choice is never changed.

    Raises:
        ValueError: If ``impl`` is unknown, or ``"triton"`` was asked for and lacks the package or the dtype.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}.")
    if impl == "triton":
        if not triton_is_installed():
            raise ValueError('impl="triton" needs the package triton, which is not installed: use impl="auto".')
        check_kernel_dtype("operands", dtype)
        return "triton"
    if impl == "auto":
        if device.type != "cuda":
            return "torch"
        if dtype == torch.float64:
            return "reference"
        return "triton" if triton_is_installed() and dtype in KERNEL_DTYPES else "torch"
    return "reference" if impl == "reference" else "torch"


def grouped_gemm(
    x: Float[Tensor, "rows D"],
    weight: Float[Tensor, "E F1 D"],
    offsets: Int[Tensor, "bounds"],
    bias: Float[Tensor, "E F1"] | None = None,
    *,
    activation: str | None = None,
    token: Int[Tensor, "N"] | None = None,
    gates: Float[Tensor, "*slots"] | None = None,
    slot: Int[Tensor, "N"] | None = None,
    order: Literal["row", "slot"] = "row",
    impl: Impl = "auto",
) -> Float[Tensor, "N F"]:
    """``out[r] = gates[slot[r]] * act(weight[e(r)] x[token[r]] + bias[e(r)])``, gather and epilogue fused.

    Expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``. Rows from ``offsets[E]`` on belong to no expert: zero
    output, zero gradient. Under ``torch.autocast`` the operands take the autocast dtype.

    Args:
        x: One row for each of the plan's ``N``, or with ``token`` one for each token.
        weight: One matrix per expert, either of its last two dimensions contiguous. For a gated activation its
            rows are gates and values, in the layout that the activation names.
        offsets: ``(E + 1,)``, non-decreasing, from 0 to at most ``N``.
        bias: One vector per expert.
        activation: A name of :data:`moekit_kernels.activations.ACTIVATIONS`; none by default.
        token: Row of ``x`` for each row of the plan; ``x`` is not copied.
        gates: ``N`` weights, of any shape.
        slot: Flat index into ``gates`` of each row, none twice; by default the row itself.
        order: ``"row"``: the output is in the order of the experts; ``"slot"``: row ``r`` goes to place ``slot[r]``,
            which for slots ``t * K + k`` is the order of the tokens.
        impl: ``"reference"`` and ``"torch"``: :func:`grouped_gemm_reference`, every expert on every row or needed
            work only, gradients of every order. ``"triton"``: one kernel, first-order gradients. See
            :func:`resolve_impl`.

    Returns:
        ``(N, F)`` in the dtype of ``x``.

    Raises:
        ValueError: If shapes, dtypes or names do not fit, or the kernel cannot run where the tensors are.

    Example:
        >>> x, weight = torch.ones(3, 2), torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
        >>> grouped_gemm(x, weight, torch.tensor([0, 1, 3])).flatten().tolist()
        [2.0, 4.0, 4.0]
    """
    x, weight, bias = autocast(x), autocast(weight), autocast(bias)
    check_operands(x, weight, offsets, bias, activation, token, gates, slot, order)
    dtype = x.dtype if gates is None else torch.promote_types(x.dtype, gates.dtype)
    way = resolve_impl(impl, x.device, dtype)
    if way != "triton":
        return grouped_gemm_reference(
            x, weight, offsets, bias, activation=activation, token=token, gates=gates, slot=slot, order=order,
            plain=way == "reference",
        )  # fmt: skip
    # Kernels read indices and gates with a stride of 1; only a view that has another is copied.
    offsets = offsets.contiguous()
    token, slot, gates = (None if t is None else t.contiguous() for t in (token, slot, gates))
    differentiable = [t for t in (x, weight, bias, gates) if t is not None]
    refuse_forward_mode("grouped_gemm", *differentiable)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    keep = keep and (activation is not None or gates is not None)
    return _grouped_gemm(x, weight, offsets, bias, token, gates, slot, activation, order == "slot", keep)[0]
