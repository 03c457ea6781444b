"""Gradients of models whose experts are divided among ranks: averaged over ranks, and their norm limited."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from moekit.distributed.bank import ExpertParallel
from moekit.distributed.errors import exchange_errors
from moekit.distributed.placed import placed_banks


class _Sharded(NamedTuple):
    """A parameter, the groups over whose ranks it is divided, and the rows that count; all where None."""

    parameter: nn.Parameter
    groups: tuple[dist.ProcessGroup, ...]
    rows: list[int] | None = None

    def counted_gradient(self) -> Tensor | None:
        """Returns this rank's part of the gradient, each value on one rank only."""
        grad = None if self.parameter.grad is None else _local(self.parameter.grad)
        return grad if grad is None or self.rows is None else grad[self.rows]


def average_gradients_(
    model: nn.Module, group: dist.ProcessGroup | None = None, *, data_group: dist.ProcessGroup | None = None
) -> None:
    """Averages gradients over ranks, after backward, in place: for models that neither DDP nor FSDP holds.

    What every rank holds is averaged over all ranks of ``group``. Experts, which have the gradients of all tokens of
    their own group already, are averaged over ``data_group``: the ranks that hold the same experts. A parameter that
    has a gradient on some ranks only counts as zero on the others; one without any keeps none.

    Args:
        model: A model after :func:`~moekit.distributed.expert_parallel_` with ``gradients="average"``.
        group: All ranks that train the model; the default group if None.
        data_group: The ranks that hold the same experts, ``mesh["dp"].get_group()``; None where no other does.
    """
    experts = _expert_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _average([each for each in trained if id(each) not in experts], group)
    if data_group is not None:
        _average([each for each in trained if id(each) in experts], data_group)


def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales all gradients of a model so that their norm together is at most ``max_norm``.

    As :func:`torch.nn.utils.clip_grad_norm_`, which refuses parameters of different meshes, for models whose parameters
    are whole, divided by FSDP, and divided among the ranks of experts: each value counts once, and so does an expert
    with replicas. All ranks must call it.

    Args:
        model: A model, after :func:`~moekit.distributed.expert_parallel_` and ``fully_shard`` in any combination.
        max_norm: The limit.
        norm_type: ``p`` of the norm, ``math.inf`` for the largest value.
        error_if_nonfinite: Whether to raise if the norm is not finite.

    Returns:
        The norm of all gradients before, a tensor without dimensions, the same on every rank.

    Raises:
        ValueError: If a gradient is a sum that is still to be made over ranks.
        RuntimeError: If the norm is not finite, where asked.
    """
    trained = [each for each in _sharded_parameters(model) if each.parameter.requires_grad]
    norms: list[Tensor] = []
    # One reduction for each set of groups, which is the same on all ranks, with or without gradients.
    by_groups: dict[tuple[str, ...], list[_Sharded]] = {}
    for each in trained:
        by_groups.setdefault(tuple(group.group_name for group in each.groups), []).append(each)
    for name in sorted(by_groups):
        same = by_groups[name]
        norms.append(_norm(same, norm_type))
    total = _vector_norm(torch.stack(norms), norm_type) if norms else torch.zeros(())
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(f"the norm of order {norm_type} of the gradients is not finite, got {total.item()}.")
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    local = [_local(grad) for each in trained if (grad := each.parameter.grad) is not None]
    for grads in _by_dtype(local):
        torch._foreach_mul_(grads, scale.to(grads[0].device))  # pyright: ignore
    return total


def _average(parameters: list[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    if not parameters:
        return
    size, device = dist.get_world_size(group), parameters[0].device
    has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
    _all_reduce(has, dist.ReduceOp.MAX, group)
    somewhere = [parameter for parameter, flag in zip(parameters, cast(list[int], has.tolist()), strict=True) if flag]
    for parameter in somewhere:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for grads in _by_dtype([_local(cast(Tensor, parameter.grad)) for parameter in somewhere]):
        packed = torch.cat([grad.reshape(-1) for grad in grads])
        _all_reduce(packed, dist.ReduceOp.SUM, group)
        packed /= size
        means = cast(tuple[Tensor, ...], packed.split([grad.numel() for grad in grads]))
        for grad, mean in zip(grads, means, strict=True):
            grad.copy_(mean.view(grad.shape))


def _norm(sharded: list[_Sharded], norm_type: float) -> Tensor:
    """Returns the norm of parameters that are divided over the same groups."""
    device = sharded[0].parameter.device
    grads = [grad for each in sharded if (grad := each.counted_gradient()) is not None]
    parts = [_vector_norm(grad, norm_type).double() for grad in grads if grad.numel()]
    none = torch.zeros((), device=device, dtype=torch.float64)
    norm = _vector_norm(torch.stack(parts), norm_type) if parts else none
    largest = math.isinf(norm_type)
    for group in sharded[0].groups:
        power = norm if largest else norm**norm_type
        _all_reduce(power, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group)
        norm = power if largest else power ** (1 / norm_type)
    return norm


def _all_reduce(x: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> None:
    with exchange_errors(group):
        dist.all_reduce(x, op=op, group=group)


def _vector_norm(x: Tensor, norm_type: float) -> Tensor:
    # torch's own types leave the result unknown.
    return cast(Tensor, torch.linalg.vector_norm(x, norm_type, dtype=torch.promote_types(x.dtype, torch.float32)))


def _sharded_parameters(model: nn.Module) -> Iterable[_Sharded]:
    experts = _expert_parameters(model)
    placed = {id(parameter): bank for bank in placed_banks(model) for parameter in bank.parameters()}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            if any(isinstance(each, Partial) for each in getattr(parameter.grad, "placements", ())):
                raise ValueError(f"gradient of {name} must be reduced over ranks, got placements {placements}.")
            divided = [dim for dim, each in enumerate(placements) if not isinstance(each, Replicate)]
            rows = placed[id(parameter)].first_rows(parameter) if id(parameter) in placed else None
            yield _Sharded(parameter, tuple(mesh.get_group(dim) for dim in divided), rows)
        else:
            group = experts.get(id(parameter))
            yield _Sharded(parameter, () if group is None else (group,))


def _expert_parameters(model: nn.Module) -> dict[int, dist.ProcessGroup]:
    """Returns the parameters of divided experts, by identity, with the group of the ranks that hold the others."""
    banks = [each for each in model.modules() if isinstance(each, ExpertParallel)]
    return {id(parameter): bank.group for bank in banks for parameter in bank.parameters()}


def _by_dtype(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for each in tensors:
        groups.setdefault((each.dtype, each.device), []).append(each)
    return groups.values()


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x
