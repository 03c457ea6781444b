"""Models as they were before their parameters were divided: the same modules, without values."""

from collections import OrderedDict
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from moekit.distributed.bank import ExpertParallel, HeldModules
from moekit.distributed.placed import PlacedExperts

_DIVISION = {*ExpertParallel.__annotations__, *PlacedExperts.__annotations__}
_HOOKS = [name for name, value in vars(nn.Module()).items() if isinstance(value, OrderedDict)]


def is_divided(model: nn.Module) -> bool:
    """Returns whether this rank holds a part of a model only: of its experts, or of a tensor."""
    if any(isinstance(each, ExpertParallel) for each in model.modules()):
        return True
    return any(isinstance(each, DTensor) for each in (*model.parameters(), *model.buffers()))


def undivided(model: nn.Module) -> nn.Module:
    """Returns a model of the classes and settings that it had before it was divided, on the meta device.

    Taken off are :func:`~moekit.distributed.expert_parallel_`, ``fully_shard``, ``checkpoint_wrapper`` and hooks. All
    ranks must call it: of a list of modules, each rank has its own alone, so the others come from their ranks (as
    classes and settings, by pickle).

    Args:
        model: The model, which stays as it is. Attributes that are neither modules nor tensors are the same objects.
    """
    return _Copier().module(model)


class _Copier:
    """Copies each module and each tensor once, so that shared ones stay shared."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}

    def module(self, module: nn.Module) -> nn.Module:
        if isinstance(module, CheckpointWrapper):
            return self.module(vars(module)["_modules"]["_checkpoint_wrapped_module"])
        if id(module) in self._copies:
            return self._copies[id(module)]
        kind = _own_class(type(module))
        copy = kind.__new__(kind)
        self._copies[id(module)] = copy
        own: dict[str, Any] = {name: value for name, value in vars(module).items() if name not in _DIVISION}
        own |= {name: OrderedDict[str, Any]() for name in _HOOKS if name in own}
        for tensors in ("_parameters", "_buffers"):
            own[tensors] = {name: self._tensor(each) for name, each in vars(module)[tensors].items()}
        if isinstance(module, PlacedExperts):
            own["_parameters"] = {name: self._of_experts(module, each) for name, each in own["_parameters"].items()}
        children: dict[str, nn.Module | None] = vars(module)["_modules"]
        own["_modules"] = {name: None if each is None else self.module(each) for name, each in children.items()}
        for name, each in children.items():
            if isinstance(module, ExpertParallel) and isinstance(each, HeldModules):
                own["_modules"][name] = _whole_list(module, cast(nn.ModuleList, own["_modules"][name]))
        vars(copy).update(own)
        return copy

    def _tensor(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in self._copies:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            self._copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return self._copies[id(tensor)]

    def _of_experts(self, bank: PlacedExperts, slots: Tensor | None) -> Tensor | None:
        """Returns a parameter with a row for each expert from one with a row for each slot."""
        if slots is None:
            return None
        rows = slots.new_empty(bank.placement.num_experts, *slots.shape[1:])
        return nn.Parameter(rows, slots.requires_grad)


def _whole_list(bank: ExpertParallel, held: nn.ModuleList) -> nn.ModuleList:
    """Returns the modules of all ranks, those of this one as they are."""
    mine = list(vars(held)["_modules"].values())
    shares: list[Any] = [None] * bank.share.ranks
    dist.all_gather_object(shares, mine, group=bank.group)
    shares[bank.share.rank] = mine
    return nn.ModuleList([each for share in shares for each in share])


def _own_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns the class that a module had before it was divided."""
    # Both put a class of their own before the one that a module had.
    while len(kind.__bases__) == 2 and issubclass(kind.__bases__[0], ExpertParallel | FSDPModule):
        kind = kind.__bases__[1]
    return nn.ModuleList if kind is HeldModules else kind
