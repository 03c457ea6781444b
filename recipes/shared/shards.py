"""Whole tensors of a state whose tensors are sharded over ranks, and the way back.

Files hold whole tensors, so a run that was trained sharded is read by one process, and goes on under any strategy.
``torch.distributed.checkpoint`` writes whole states too, with names instead of numbers in the optimiser's; here the
file of a sharded run is that of any other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


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
