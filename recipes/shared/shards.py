"""Whole tensors of a state whose tensors are sharded over ranks, and the way back.

Files hold whole tensors, so a run that was trained sharded is read by one process, and goes on under any strategy.
``torch.distributed.checkpoint`` writes whole states too, with names instead of numbers in the optimiser's; here the
file of a sharded run is that of any other.

Modules that some ranks only hold, such as the experts of a list that is divided, are no shards of a tensor: their names
are missing from the states of the other ranks.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

Key = TypeVar("Key", bound=Hashable)


def whole_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict with whole tensors on the CPU in place of sharded ones.

    One tensor is gathered at a time. Every rank must call this; plain tensors stay as they are.
    """
    return tree_map_only(DTensor, lambda shards: shards.full_tensor().cpu(), dict(state))


def shard_like(whole: Tensor, own: Tensor) -> Tensor:
    """Returns this rank's shards of a whole tensor where ``own`` is sharded, else the tensor itself."""
    if not isinstance(own, DTensor):
        return whole
    # Every rank has read the file: nothing to send.
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def shard_model_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's whole state in the shards of the model; names and shapes must be its own."""
    own = model.state_dict()
    return {name: shard_like(value, own[name]) for name, value in state.items()}


def shard_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns an optimiser's whole state in the shards of its parameters.

    Args:
        state: Its ``state_dict``, with the parameters in the order of the optimiser's groups.
        optimizer: Over the model's parameters, sharded or not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def of(parameter: Tensor, moments: dict[str, Any]) -> dict[str, Any]:
        return {
            name: shard_like(value, parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim
            else value
            for name, value in moments.items()
        }

    return {**state, "state": {number: of(parameters[number], one) for number, one in state["state"].items()}}


def complete_model_state(state: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Adds what other ranks hold of a model; every rank must call it, and the first one has all of it.

    Args:
        state: Of this rank, with whole tensors.
        names: Those of the whole model, in order.
        device: Where tensors can be sent from.
    """
    everything = _from_all(state, device)
    return {name: everything[name] for name in names if name in everything}


def complete_optimizer_state(state: Mapping[str, Any], names: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Adds what other ranks hold of an optimiser's state, numbered as one over the whole model does.

    Args:
        state: Of this rank, with whole tensors; its groups have ``names``.
        names: Those of the parameters of the whole model, in order.
        device: Where tensors can be sent from.
    """
    moments = {
        (name, key): value
        for name, number in _numbers(state).items()
        for key, value in state["state"].get(number, {}).items()
    }
    by_name: dict[str, dict[str, Tensor]] = {}
    for (name, key), value in _from_all(moments, device).items():
        by_name.setdefault(name, {})[key] = value
    groups: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(groups, [group["names"] for group in state["param_groups"]])
    held = [{name for part in parts for name in part} for parts in zip(*groups, strict=True)]
    return _renumbered(state, [[name for name in names if name in group] for group in held], by_name)


def held_optimizer_state(state: dict[str, Any], elsewhere: Collection[str]) -> dict[str, Any]:
    """Leaves out of an optimiser's state what other ranks hold.

    Args:
        state: Of an optimiser over the whole model.
        elsewhere: Names of the parameters that only other ranks hold.
    """
    if not all("names" in group for group in state["param_groups"]):
        return state  # of an older version, which is refused for it
    by_name = {name: state["state"][number] for name, number in _numbers(state).items() if number in state["state"]}
    kept = [[name for name in group["names"] if name not in elsewhere] for group in state["param_groups"]]
    return _renumbered(state, kept, by_name)


def _numbers(state: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of each parameter in an optimiser's state."""
    return {
        name: number
        for group in state["param_groups"]
        for name, number in zip(group["names"], group["params"], strict=True)
    }


def _renumbered(state: Mapping[str, Any], names: Sequence[Sequence[str]], moments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an optimiser's state with other parameters in its groups, numbered through all of them."""
    order = [name for group in names for name in group]
    numbers = {name: number for number, name in enumerate(order)}
    return {
        **state,
        "state": {number: moments[name] for name, number in numbers.items() if name in moments},
        "param_groups": [
            {**group, "names": list(own), "params": [numbers[name] for name in own]}
            for group, own in zip(state["param_groups"], names, strict=True)
        ],
    }


def _from_all(tensors: Mapping[Key, Tensor], device: torch.device) -> dict[Key, Tensor]:
    """Adds the tensors that only other ranks have, one at a time, on the CPU of the first rank."""
    tables: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(tables, {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()})
    everything, seen = dict(tensors), set[Key]()
    for rank, table in enumerate(tables):
        for key, (shape, dtype) in table.items():
            if key in seen or all(key in other for other in tables):
                continue
            seen.add(key)
            value = (
                tensors[key].detach().to(device) if key in tensors else torch.empty(shape, dtype=dtype, device=device)
            )
            dist.broadcast(value, src=rank)
            if key not in tensors and dist.get_rank() == 0:
                everything[key] = value.cpu()
    return everything
