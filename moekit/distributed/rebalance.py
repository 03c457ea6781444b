"""Experts that move between ranks while a model trains, and what its optimizer needs for it."""

from collections.abc import Iterable
from typing import Any, cast
from weakref import WeakSet

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from moekit.distributed.placed import Placements, check_agreement, parameters_of_placed, placed_banks, placements_of
from moekit.distributed.placement import ExpertPlacement
from moekit.distributed.slots import Slots

_PREPARED: "WeakSet[Optimizer]" = WeakSet()


def rebalance_(model: nn.Module, optimizer: Optimizer | None, placement: Placements) -> None:
    """Moves experts to the ranks of another placement: weights, gradients and the states of the optimizer, in place.

    Values are copied, so training goes on as it would have. Replicas take what the first one has. All ranks must call
    it, between steps, with placements of the same loads; under FSDP2 too. Rows that stay on their rank do not travel.

    Args:
        model: A model after :func:`~moekit.distributed.expert_parallel_` with ``placement``.
        optimizer: Its optimizer, whose states are divided as their parameter is or are single numbers, as those of
            Adam; None without one.
        placement: With as many slots as before; one for all layers that have one, or for some by the name that they
            had in :func:`~moekit.distributed.expert_parallel_`.

    Raises:
        ValueError: If a layer has no placement yet, a placement has another number of experts, ranks or slots or is not
            the same on all ranks, or the optimizer has states of other shapes. Nothing is changed then.
    """
    placed = placed_banks(model)
    banks = {bank.layer_name: bank for bank in placed}
    if not banks:
        raise ValueError("model must have been given a placement by expert_parallel_.")
    if len(banks) < len(placed):
        raise ValueError("model must have been divided in one call of expert_parallel_: give rebalance_ its parts.")
    placements = placements_of(placement, list(banks))
    parameters: dict[str, list[DTensor]] = {name: [] for name in placements}
    for parameter, bank in parameters_of_placed(model):
        if bank.layer_name in placements:
            parameters[bank.layer_name].append(parameter)
    for name, after in placements.items():
        _check_sizes(name, banks[name].placement, after)
        for parameter in parameters[name]:
            _check_states(name, parameter, _states(parameter, optimizer))
    for name, after in placements.items():
        check_agreement(after, banks[name].group)
        grid, _ = banks[name].layout(parameters[name][0])
        if grid.data is not None:
            check_agreement(after, grid.data)
    for name, after in placements.items():
        bank = banks[name]
        for parameter in parameters[name]:
            states = [
                each for each in _states(parameter, optimizer).values() if isinstance(each, DTensor) and each.ndim
            ]
            grads = [] if parameter.grad is None else [cast(DTensor, parameter.grad)]
            bank.place_([parameter, *grads, *states], parameter, after)
        bank.slots = Slots(after, bank.slots.rank, bank.slots.ranks_of_node)


def prepare_optimizer_(model: nn.Module, optimizer: Optimizer) -> None:
    """Prepares an optimizer for experts with a placement; once more does nothing.

    Its state dicts get one row for each expert, in their order, as those of the model have; making or loading one is a
    collective. Where more than two ranks hold the same experts, whose gradients are averaged in an order that may
    differ from replica to replica, its steps give all replicas the gradient of the first, so that they stay the same to
    the bit. :class:`~moekit.distributed.Checkpoints` calls it.

    Args:
        model: A model after :func:`~moekit.distributed.expert_parallel_` and ``fully_shard``.
        optimizer: Its optimizer.
    """
    if optimizer in _PREPARED or not placed_banks(model):
        return
    _PREPARED.add(optimizer)

    def saved(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return _converted(model, optimizer, state, to_logical=True)

    def loaded(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return _converted(model, optimizer, state, to_logical=False)

    def before_step(*_: Any) -> None:
        for parameter, bank in parameters_of_placed(model):
            beside = dist.get_world_size() // bank.placement.num_ranks
            if parameter.grad is not None and max(bank.placement.replicas) > 1 and beside > 2:
                bank.unify_(parameter.grad)

    optimizer.register_state_dict_post_hook(saved)
    optimizer.register_load_state_dict_pre_hook(loaded)
    optimizer.register_step_pre_hook(before_step)


def _check_sizes(name: str, before: ExpertPlacement, after: ExpertPlacement) -> None:
    wanted, got = ((each.num_experts, each.num_ranks, each.slots_per_rank) for each in (before, after))
    if wanted != got:
        raise ValueError(
            f"placement of {name!r} must be of {wanted[0]} experts in {wanted[2]} slots on each of {wanted[1]} ranks, "
            f"as before, got {got[0]} in {got[2]} on {got[1]}."
        )


def _states(parameter: DTensor, optimizer: Optimizer | None) -> dict[str, Any]:
    return {} if optimizer is None else optimizer.state.get(cast(Tensor, parameter), {})


def _check_states(name: str, parameter: DTensor, states: dict[str, Any]) -> None:
    for key, value in states.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        shape, divided = tuple(value.shape), getattr(value, "placements", None)
        if divided != parameter.placements or shape[0] != parameter.shape[0]:
            raise ValueError(
                f"optimizer must have states with the rows of their parameter, got {key!r} of shape {shape} in "
                f"{name!r}, where the parameter has {tuple(parameter.shape)}."
            )


def _converted(model: nn.Module, optimizer: Optimizer, state: dict[str, Any], *, to_logical: bool) -> dict[str, Any]:
    """Returns a state dict with the rows of experts in place of those of slots, or the other way round."""
    placed = {id(parameter): (parameter, bank) for parameter, bank in parameters_of_placed(model)}
    states: dict[Any, Any] = dict(state["state"])
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    keys: Iterable[tuple[Tensor, Any]] = (
        pair for own, saved in pairs for pair in zip(own["params"], saved["params"], strict=True)
    )
    for each, key in keys:
        if id(each) in placed and key in states:
            parameter, bank = placed[id(each)]
            if to_logical:
                _check_states(bank.layer_name, parameter, states[key])
            convert = bank.to_logical if to_logical else bank.to_slots
            states[key] = {
                name: convert(value) if isinstance(value, DTensor) and value.ndim else value
                for name, value in states[key].items()
            }
    return {**state, "state": states}
