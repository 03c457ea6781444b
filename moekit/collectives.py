"""Sums of statistics and concatenations of tensors over ranks."""

from collections.abc import Sequence
from typing import Any, cast, overload

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import _functional_collectives as functional  # the collectives that compile

from moekit.routing import RouterStats, check_stats


@overload
def all_reduce_stats(stats: RouterStats, group: dist.ProcessGroup | None = None) -> RouterStats: ...
@overload
def all_reduce_stats(stats: Sequence[RouterStats], group: dist.ProcessGroup | None = None) -> list[RouterStats]: ...
def all_reduce_stats(
    stats: RouterStats | Sequence[RouterStats], group: dist.ProcessGroup | None = None
) -> RouterStats | list[RouterStats]:
    """Adds statistics up over the ranks of ``group``; a loss of the sum is that of the global batch.

    One collective for all fields and all layers, which compiles with ``fullgraph=True``. They are sent as float64, in
    which counts below 2^53 are exact.

    Differentiable: each rank's sums receive the gradients of all ranks' losses. With DDP, which averages
    gradients over ranks, a loss of global statistics therefore counts once, as it should. All ranks must run backward
    through the result, or none.

    Args:
        stats: This rank's statistics, for the same number of experts on every rank; or those of several layers, as
            many on every rank and in the same order.
        group: Process group; the default group if None.

    Returns:
        The same on every rank, in the dtypes of ``stats``, a list of those of several layers; the statistics
        themselves where no process group is initialised.

    Raises:
        ValueError: If ``stats`` is neither a :class:`~moekit.RouterStats` nor a sequence of some.
    """
    # A RouterStats is a sequence too, and so are a MoEOutput, which has statistics, and None is none.
    if isinstance(stats, RouterStats) or not isinstance(stats, Sequence) or hasattr(stats, "stats"):  # pyright: ignore[reportUnnecessaryIsInstance]
        check_stats(stats, "RouterStats or a sequence of them")
        return _all_reduce([cast(RouterStats, stats)], group)[0]
    for place, each in enumerate(stats):
        check_stats(each, name=f"stats[{place}]")
    return _all_reduce(list(stats), group) if stats else []


def _all_reduce(layers: list[RouterStats], group: dist.ProcessGroup | None) -> list[RouterStats]:
    if not dist.is_available() or not dist.is_initialized():
        return layers
    fields = [field for stats in layers for field in stats]
    packed = torch.cat([field.reshape(-1).to(torch.float64) for field in fields])
    # torch's own types leave the result of apply unknown.
    total = cast(Tensor, _AllReduce.apply(packed, group))
    parts = cast(tuple[Tensor, ...], total.split([field.numel() for field in fields]))
    reduced = [part.reshape(field.shape).to(field.dtype) for part, field in zip(parts, fields, strict=True)]
    size = len(RouterStats._fields)
    return [RouterStats(*reduced[start : start + size]) for start in range(0, len(reduced), size)]


class _AllReduce(torch.autograd.Function):
    """Adds up over ranks forward; backward adds the gradients of all ranks up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        # Not dist.all_reduce: compiled by torch 2.11, in place inside of a function, it has gradients of zero.
        own_group = dist.group.WORLD if group is None else group
        return functional.wait_tensor(functional.all_reduce(x, "sum", cast(dist.ProcessGroup, own_group)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        # By the function itself, so that gradients of the gradient are right too.
        return cast(Tensor, _AllReduce.apply(grad_outputs[0].contiguous(), ctx.group)), None


def all_gather_with_gradient(
    x: Shaped[Tensor, "rows *D"], group: dist.ProcessGroup | None = None
) -> Shaped[Tensor, "gathered *D"]:
    """Concatenates the rows of all ranks of ``group``, in the order of ranks.

    Differentiable: each rank's ``x`` receives the sum of the gradients of all ranks' results. All ranks must
    therefore run backward through the result, or none.

    Args:
        x: This rank's rows, of any dtype, the same number on every rank.
        group: Process group; the default group if None.

    Returns:
        The same on every rank; ``x`` itself where no process group is initialised.

    Raises:
        ValueError: If ``x`` has no dimension; or, on every rank, if numbers of rows differ. For this check they are
            gathered and read on the host.
    """
    if not dist.is_available() or not dist.is_initialized():
        return x
    if x.ndim == 0:
        raise ValueError("x must have rows to concatenate, got a tensor without dimensions.")
    own = torch.tensor([len(x)], device=x.device)
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, own, group=group)
    counts = cast(list[int], torch.cat(rows).tolist())
    if len(set(counts)) > 1:
        raise ValueError(
            f"x must have as many rows on every rank, got {counts} over ranks. Drop the last, smaller batch "
            "(drop_last=True) or give every rank as many samples."
        )
    # torch's own types leave the result of apply unknown.
    return cast(Tensor, _AllGather.apply(x, group))


class _AllGather(torch.autograd.Function):
    """Gathers forward; backward adds the gradients of all ranks up and keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.rows = group, x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        # Not a reduce-scatter: not every backend has one, and gradients of features are small.
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.narrow(0, dist.get_rank(ctx.group) * ctx.rows, ctx.rows), None
