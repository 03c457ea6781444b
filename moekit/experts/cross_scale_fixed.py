"""Cross-scale experts with static shapes: each row of a plan with its own expert's weights, all rows at once.

Nothing is read on the host. Shape letters: N rows of the plan, K experts, D width, H and W size of the output.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.experts.cross_scale_expert import BatchNorm, CrossScaleExpert, GroupNorm
from moekit.fusion.cross_scale import CrossScaleAttention, CrossScaleOutput, fuse_scales
from moekit.plan import DispatchPlan


class RowExperts(NamedTuple):
    """The expert of each row.

    Attributes:
        experts: The experts.
        ids: ``(N,)``, in ``[0, K)``; the last expert's for unassigned rows.
        assigned: ``(N,)``, False for unassigned rows.
    """

    experts: Sequence[CrossScaleExpert]
    ids: Tensor
    assigned: Tensor

    def of(self, pick: Callable[[CrossScaleExpert], Tensor | None]) -> Tensor:
        """Returns what ``pick`` takes of its expert, for each row: ``(N, ...)``."""
        return stacked(self.experts, pick).index_select(0, self.ids)

    def sums(self, x: Tensor) -> Tensor:
        """Sums ``x (N, D)`` over the rows of each expert, ``(K, D)``.

        No matrix product with a one-hot matrix: ``0 * NaN`` would carry one expert's NaN into all others.
        """
        index = torch.arange(len(self.experts), device=x.device)
        own = (index[:, None] == self.ids) & self.assigned
        return torch.where(own[:, :, None], x, 0).sum(1)


def stacked(experts: Sequence[CrossScaleExpert], pick: Callable[[CrossScaleExpert], Tensor | None]) -> Tensor:
    """Stacks what ``pick`` takes of every expert, ``(K, ...)``."""
    return torch.stack([cast(Tensor, pick(expert)) for expert in experts])


def take_samples(x: Tensor, index: Tensor) -> Tensor:
    """Returns ``x[index]``, keeping channels last, with the gradient of ``index_select``.

    The gradient of indexing with a tensor adds up element by element on CPU.
    """
    if x.is_contiguous():
        return x.index_select(0, index)
    return x.movedim(1, -1).index_select(0, index).movedim(-1, 1)


def readable(expert: nn.Module, name: str) -> CrossScaleExpert:
    """Returns ``expert``, whose weights may be read instead of calling it.

    Args:
        expert: An expert.
        name: Its name, for the message.

    Raises:
        ValueError: If the expert or one of its layers computes something else than the class that was built, as a
            wrapper (LoRA, activation checkpointing) in its place does.
    """
    _check_forward(name, expert, CrossScaleExpert)
    expert = cast(CrossScaleExpert, expert)
    _check_forward(f"{name}.attention", expert.attention, CrossScaleAttention)
    for scale, (projection, head) in enumerate(zip(expert.attention.projections, expert.attention.heads, strict=True)):
        _check_forward(f"{name}.attention.projections[{scale}]", projection, nn.Conv2d)
        _check_forward(f"{name}.attention.heads[{scale}]", head, nn.Sequential)
        for index, layer in enumerate(head.children()):
            _check_forward(f"{name}.attention.heads[{scale}][{index}]", layer, nn.ReLU if index % 2 else nn.Conv2d)
    for index, (convolution, norm) in enumerate(zip(expert.convolutions, expert.norms, strict=True)):
        _check_forward(f"{name}.convolutions[{index}]", convolution, nn.Conv2d)
        _check_forward(f"{name}.norms[{index}]", norm, BatchNorm, GroupNorm)
    return expert


def _check_forward(name: str, module: nn.Module, *kinds: type[nn.Module]) -> None:
    # By forward and not by class: parametrised modules are subclasses, which compute the same of their weights.
    if any(type(module).forward is kind.forward for kind in kinds) and "forward" not in module.__dict__:
        return
    raise ValueError(
        f"{name} must be the {' or '.join(kind.__name__ for kind in kinds)} that was built for "
        f'batching="fixed" (batching="auto" under torch.compile and torch.export), which reads weights, got '
        f'{type(module).__name__}: use batching="loop", or merge the wrapper into the weights.'
    )


def fixed_outputs(experts: Sequence[CrossScaleExpert], maps: Sequence[Tensor], plan: DispatchPlan) -> Tensor:
    """Computes one map ``(N, D, H, W)`` per row of the plan; zeros for unassigned rows."""
    first = experts[0]
    if plan.token_of_row.shape[0] == 0:  # a convolution of no groups is an error
        return _no_rows(maps, first, first.attention.dim)
    rows = _rows(experts, plan)
    x = _attended(rows, maps, plan).output
    for layer in range(len(first.convolutions)):
        x = _convolved(rows, x, layer)
        x = F.relu(_normalised(rows, x, layer))
    return torch.where(rows.assigned[:, None, None, None], x, 0)


def fixed_weights(experts: Sequence[CrossScaleExpert], maps: Sequence[Tensor], plan: DispatchPlan) -> Tensor:
    """Computes weights of the scales ``(N, L, H, W)`` per row of the plan; zeros for unassigned rows."""
    if plan.token_of_row.shape[0] == 0:
        return _no_rows(maps, experts[0], len(maps))
    rows = _rows(experts, plan)
    weights = cast(Tensor, _attended(rows, maps, plan).weights)
    return torch.where(rows.assigned[:, None, None, None], weights, 0)


def _no_rows(maps: Sequence[Tensor], expert: CrossScaleExpert, width: int) -> Tensor:
    return maps[0].new_zeros(0, width, *maps[expert.attention.align_to].shape[-2:])


def _rows(experts: Sequence[CrossScaleExpert], plan: DispatchPlan) -> RowExperts:
    row = torch.arange(plan.token_of_row.shape[0], device=plan.token_of_row.device, dtype=plan.offsets.dtype)
    ids = torch.searchsorted(plan.offsets[1:], row, right=True)
    return RowExperts(experts, ids.clamp(max=len(experts) - 1), ids < len(experts))


def _attended(rows: RowExperts, maps: Sequence[Tensor], plan: DispatchPlan) -> CrossScaleOutput:
    attention = rows.experts[0].attention
    # Unassigned rows may hold anything, NaN included, which would reach gradients of weights as 0 * NaN.
    taken = [torch.where(rows.assigned[:, None, None, None], take_samples(x, plan.token_of_row), 0) for x in maps]

    def project(scale: int, x: Tensor) -> Tensor:
        return _pointwise(rows, x, lambda expert: expert.attention.projection(scale))

    def score(scale: int, x: Tensor) -> Tensor:
        for layer in range(len(attention.head(scale))):
            x = _pointwise(rows, F.relu(x) if layer else x, _head_layer(scale, layer))
        return x

    return fuse_scales(taken, project, score, align_to=attention.align_to, logits_at=attention.logits_at)


def _head_layer(scale: int, layer: int) -> Callable[[CrossScaleExpert], nn.Conv2d]:
    return lambda expert: expert.attention.head(scale)[layer]


def _pointwise(rows: RowExperts, x: Tensor, layer: Callable[[CrossScaleExpert], nn.Conv2d]) -> Tensor:
    """Computes a 1x1 convolution of each row with its own expert's weights, as a batched product."""
    weight = rows.of(lambda expert: layer(expert).weight).flatten(2)
    bias = rows.of(lambda expert: layer(expert).bias)
    y = torch.baddbmm(bias.unsqueeze(-1), weight, x.flatten(2))
    return y.reshape(*y.shape[:2], *x.shape[-2:])


def _convolved(rows: RowExperts, x: Tensor, layer: int) -> Tensor:
    """Computes a convolution of each row with its own expert's weights: N groups of one batch entry."""
    count, width, height, breadth = x.shape
    weight = rows.of(lambda expert: cast(nn.Conv2d, expert.convolutions[layer]).weight)
    joined = x.reshape(1, count * width, height, breadth)
    y = F.conv2d(joined, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=count)
    return y.reshape(count, width, height, breadth)


def _normalised(rows: RowExperts, x: Tensor, layer: int) -> Tensor:
    norms = [expert.norms[layer] for expert in rows.experts]
    weight = rows.of(lambda expert: cast(nn.BatchNorm2d, expert.norms[layer]).weight)[:, :, None, None]
    bias = rows.of(lambda expert: cast(nn.BatchNorm2d, expert.norms[layer]).bias)[:, :, None, None]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first = norms[0]
    if isinstance(first, nn.GroupNorm):
        standard = torch.group_norm(wide, first.num_groups, eps=first.eps)
    else:
        standard = _batch_standardised(rows, wide, cast(list[nn.BatchNorm2d], norms))
    return (standard * weight + bias).to(x.dtype)


def _batch_standardised(rows: RowExperts, x: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Computes ``(x - mean) / sqrt(var + eps)`` by the rows' own experts' statistics; updates the running ones."""
    mean = torch.stack([cast(Tensor, norm.running_mean) for norm in norms]).to(x.dtype)
    var = torch.stack([cast(Tensor, norm.running_var) for norm in norms]).to(x.dtype)
    if any(norm.training for norm in norms):
        count = rows.sums(torch.ones_like(x[:, :1, 0, 0])) * (x.shape[2] * x.shape[3])
        least = count.clamp(min=1)
        batch_mean = rows.sums(x.sum((2, 3))) / least
        centred = x - batch_mean.index_select(0, rows.ids)[:, :, None, None]
        batch_var = rows.sums(centred.square().sum((2, 3))) / least
        # A single value per channel has no spread; an expert in eval mode uses its running statistics.
        use = torch.stack([(count[number] > 1) & norm.training for number, norm in enumerate(norms)])
        _update_running(norms, batch_mean.detach(), batch_var.detach(), count, use)
        mean, var = torch.where(use, batch_mean, mean), torch.where(use, batch_var, var)
    scale = (var + norms[0].eps).rsqrt()
    centred = x - mean.index_select(0, rows.ids)[:, :, None, None]
    return centred * scale.index_select(0, rows.ids)[:, :, None, None]


def _update_running(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: Tensor, use: Tensor) -> None:
    unbiased = var * count / (count - 1).clamp(min=1)
    for number, norm in enumerate(norms):
        for buffer, new in ((norm.running_mean, mean[number]), (norm.running_var, unbiased[number])):
            running = cast(Tensor, buffer)
            moved = torch.lerp(running, new.to(running.dtype), cast(float, norm.momentum))
            running.copy_(torch.where(use[number], moved, running))
        cast(Tensor, norm.num_batches_tracked).add_(use[number, 0])
