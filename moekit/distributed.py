"""Sums of statistics and concatenations of tensors over ranks."""

from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import _functional_collectives as functional  # the collectives that compile

from moekit.routing import RouterStats, check_stats


def all_reduce_stats(stats: RouterStats, group: dist.ProcessGroup | None = None) -> RouterStats:
    """Adds statistics up over the ranks of ``group``; a loss of the sum is that of the global batch.

    One collective for all fields, which compiles with ``fullgraph=True``. They are sent as float64, in which counts
    below 2^53 are exact.

    Differentiable: each rank's sums receive the gradients of all ranks' losses. With DDP, which averages
    gradients over ranks, a loss of global statistics therefore counts once, as it should. All ranks must run backward
    through the result, or none.

    Args:
        stats: This rank's statistics, for the same number of experts on every rank.
        group: Process group; the default group if None.

    Returns:
        The same on every rank, in the dtypes of ``stats``; ``stats`` itself where no process group is initialised.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`.
    """
    check_stats(stats)
    if not dist.is_available() or not dist.is_initialized():
        return stats
    packed = torch.cat([field.reshape(-1).to(torch.float64) for field in stats])
    # torch's own types leave the result of apply unknown.
    total = cast(Tensor, _AllReduce.apply(packed, group))
    parts = cast(tuple[Tensor, ...], total.split([field.numel() for field in stats]))
    return RouterStats(*(part.reshape(field.shape).to(field.dtype) for part, field in zip(parts, stats, strict=True)))


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
