"""Experts over ranks: each rank holds a share of every layer's experts, and tokens go where their experts are."""

from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from moekit.changed_class import ChangedClass
from moekit.checks import check_choice, check_positive
from moekit.distributed.bank import ExpertParallel, HeldModules, share_bank
from moekit.distributed.exchange import BoundedExchange, DeduplicatedExchange, ExactExchange, Exchange, Share
from moekit.distributed.placed import PlacedExperts, Placements, check_agreement, check_placement, placements_of
from moekit.distributed.placement import ExpertPlacement
from moekit.distributed.routes import Direct, Transport, TwoStage
from moekit.distributed.slots import Slots
from moekit.experts.base import Experts
from moekit.experts.cross_scale import CrossScaleExperts
from moekit.experts.ffn import FFNExperts
from moekit.experts.modules import ModuleExperts
from moekit.experts.zero_computation import ZeroComputationExperts
from moekit.layer import SparseMoE
from moekit.parts import named_modules

Model = TypeVar("Model", bound=nn.Module)
Gradients = Literal["average", "sum"]
GRADIENTS: tuple[Gradients, ...] = ("average", "sum")


def expert_parallel_(
    model: Model,
    mesh: DeviceMesh,
    *,
    two_stage: DeviceMesh | None = None,
    deduplicate: bool = False,
    max_slots_factor: float | None = None,
    wire_dtype: torch.dtype | None = None,
    micro_batches: int = 1,
    gradients: Gradients = "average",
    placement: Placements | None = None,
) -> Model:
    """Divides the experts of every :class:`~moekit.SparseMoE` of a model among the ranks of a mesh, in place.

    Rank ``r`` of ``R`` keeps experts ``r * ceil(E / R)`` up to the next rank's. Every rank routes its own tokens, any
    number of them; rows travel to the ranks of their experts, which compute them with the kernels that they would use
    alone, and back. Stacked weights become DTensors, ``Shard(0)`` over ``mesh``, and keep their names, so checkpoints
    of :mod:`torch.distributed.checkpoint` fit any other division; modules of a list stay plain, each on its own rank.
    Router, shared module and all else stay whole on every rank, with the values of the first rank of the mesh.

    It comes before ``fully_shard`` over another dimension of the mesh, before ``torch.compile`` and before an optimizer
    is made. A capacity factor limits an expert by the tokens of each rank, not of all. All ranks must run forward and
    backward through the same layers in the same order.

    Args:
        model: A model that holds layers, or a layer itself. Parameters may be on the meta device.
        mesh: One dimension of a mesh, such as ``mesh["ep"]``.
        two_stage: The same ranks in the same order as a mesh of two dimensions, nodes and the ranks of each: rows then
            travel between nodes first and within them next, in fewer and larger messages.
        deduplicate: Whether a token that has several experts on one rank travels there once; see
            :class:`~moekit.distributed.exchange.DeduplicatedExchange`.
        max_slots_factor: Sends ``ceil(max_slots_factor * T K / R)`` rows to each rank whatever the routing, so that
            nothing is read on the host; slots beyond are dropped, and counted by :func:`dropped_slots`. ``R`` is always
            enough. Needs the same number of tokens on every rank. Exact by default.
        wire_dtype: Dtype of rows and their gradients on the way, such as ``torch.bfloat16``; gates multiply and slots
            add up in the dtype of the experts' output.
        micro_batches: In how many parts a layer's rows travel and are computed, so that one part travels while another
            is computed. Not with ``deduplicate`` or ``max_slots_factor``.
        gradients: ``"average"``, for losses that are means of each rank's tokens, as with data parallelism: gradients
            of the experts are those of the average of all ranks' losses. ``"sum"``: of their sum.
        placement: Which experts each rank holds, some perhaps several ranks
            (:func:`~moekit.distributed.expert_placement`): one for all layers, or one for each by its name. For
            :class:`~moekit.FFNExperts`. Weights then have a row for each slot, and state dicts one for each expert in
            their order, as without; making or loading one is a collective. An optimizer needs
            :func:`~moekit.distributed.prepare_optimizer_`. By default equal chunks in the order of the experts, each
            once.

    Returns:
        The model.

    Raises:
        ValueError: If the model holds no layer, a layer has experts of a kind that cannot be divided or fewer chunks of
            experts than the mesh has ranks, a placement is of other experts or ranks, a mesh has other dimensions,
            options exclude each other, or one is out of range. Nothing is changed then.

    Example:
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun: no arguments
        >>> mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "ep"))
        >>> moe = expert_parallel_(SparseMoE.ffn(8, 6, num_experts=4, top_k=2), mesh["ep"])
        >>> moe.experts.local_experts
        range(0, 4)
        >>> dist.destroy_process_group()
    """
    check_choice("gradients", gradients, GRADIENTS)
    if deduplicate and max_slots_factor is not None:
        raise ValueError("deduplicate and max_slots_factor exclude each other: give one of them.")
    if max_slots_factor is not None and not max_slots_factor > 0:
        raise ValueError(f"max_slots_factor must be positive, got {max_slots_factor}.")
    check_positive("micro_batches", micro_batches)
    if micro_batches > 1 and (deduplicate or max_slots_factor is not None):
        raise ValueError(
            f"micro_batches goes with neither deduplicate nor max_slots_factor, got {micro_batches}: leave it at 1."
        )
    if wire_dtype is not None and not wire_dtype.is_floating_point:
        raise ValueError(f"wire_dtype must be a floating dtype, got {wire_dtype}.")
    if mesh.ndim != 1:
        raise ValueError(f'mesh must have one dimension, as mesh["ep"] has, got {mesh.ndim}.')
    transport = _transport(mesh, two_stage)
    layers = {name: each for name, each in named_modules(model) if isinstance(each, SparseMoE)}
    if not layers:
        raise ValueError(f"model must hold a SparseMoE, got a {type(model).__name__} without any.")
    banks = {name: _bank(name, layer) for name, layer in layers.items()}
    if len({id(bank) for bank in banks.values()}) < len(banks):
        raise ValueError("layers of the model must have experts of their own, got some that two layers share.")
    placements = placements_of(placement, list(layers))
    for name, placed in placements.items():
        check_placement(name, banks[name], placed, transport.size)
        check_agreement(placed, mesh.get_group())
    shares = {name: _share(name, bank, transport, placements.get(name)) for name, bank in banks.items()}
    factor = 1 / transport.size if gradients == "average" else 1.0
    for name, bank in banks.items():
        share = shares[name]
        _agree(layers[name], bank, mesh)
        placed = placements.get(name)
        _divide(bank, share, mesh, placed)
        exchange: Exchange
        if max_slots_factor is not None:
            exchange = BoundedExchange(transport, share, wire_dtype, max_slots_factor)
        elif deduplicate:
            exchange = DeduplicatedExchange(transport, share, wire_dtype)
        else:
            exchange = ExactExchange(transport, share, wire_dtype, micro_batches)
        kind = ExpertParallel if placed is None else PlacedExperts
        share_bank(bank, share, exchange, mesh.get_group(), factor, kind=kind)
        if placed is not None:
            near = transport.size if two_stage is None else two_stage.size(1)
            placed_bank = cast(PlacedExperts, bank)
            placed_bank.slots, placed_bank.layer_name = Slots(placed, transport.rank, near), name
    return model


def dropped_slots(model: nn.Module, *, reset: bool = False) -> dict[str, int]:
    """Returns how many slots of this rank each layer dropped because of ``max_slots_factor``.

    Reads a number of each layer on the host.

    Args:
        model: A model after :func:`expert_parallel_`.
        reset: Whether to count from zero again.

    Raises:
        ValueError: If no layer has a bound.
    """
    bounded = {
        name: each.exchange
        for name, each in named_modules(model)
        if isinstance(each, ExpertParallel) and isinstance(each.exchange, BoundedExchange)
    }
    if not bounded:
        raise ValueError("model must have been given max_slots_factor by expert_parallel_.")
    counts = {name: int(exchange.dropped) for name, exchange in bounded.items()}
    if reset:
        for exchange in bounded.values():
            exchange.dropped.zero_()
    return counts


def _transport(mesh: DeviceMesh, two_stage: DeviceMesh | None) -> Transport:
    if two_stage is None:
        return Direct(mesh.get_group())
    if two_stage.ndim != 2 or two_stage.mesh.flatten().tolist() != mesh.mesh.tolist():
        raise ValueError(
            "two_stage must be a mesh of two dimensions, nodes and ranks of a node, with the ranks of mesh in their "
            f"order, {mesh.mesh.tolist()}, got {two_stage.mesh.tolist()}."
        )
    return TwoStage(two_stage.get_group(0), two_stage.get_group(1))


def bank_of(layer: SparseMoE) -> nn.Module:
    """Returns the bank of a layer that computes, behind zero-computation experts."""
    bank: Any = layer.experts
    while isinstance(bank, ZeroComputationExperts):
        bank = bank.experts
    return bank


def _bank(name: str, layer: SparseMoE) -> Experts:
    """Returns the bank of a layer that can be divided."""
    bank: Any = bank_of(layer)
    where = f"experts of {name!r}" if name else "experts"
    if isinstance(bank, ExpertParallel):
        raise ValueError(f"{where} must not be divided yet: call expert_parallel_ once.")
    if isinstance(bank, ChangedClass) or not isinstance(bank, FFNExperts | ModuleExperts | CrossScaleExperts):
        raise ValueError(
            f"{where} must be FFNExperts, ModuleExperts or CrossScaleExperts, without adapters, int8 weights or a "
            f"wrapper, got {type(bank).__name__}: divide the experts first."
        )
    return bank


def _share(name: str, bank: Experts, transport: Transport, placement: ExpertPlacement | None) -> Share:
    if placement is not None:
        return Share(placement.num_slots, transport.size, transport.rank)
    share = Share(bank.num_experts, transport.size, transport.rank)
    if share.most * (transport.size - 1) >= bank.num_experts:
        raise ValueError(
            f"experts of {name!r} must leave at least one to every rank: {bank.num_experts} in chunks of {share.most} "
            f"fill fewer than {transport.size} ranks. Use fewer ranks, or another number of experts."
        )
    return share


def _agree(layer: SparseMoE, bank: Experts, mesh: DeviceMesh) -> None:
    """Gives what stays whole the values of the first rank."""
    divided = {id(each) for each in (*bank.parameters(), *bank.buffers())}
    group = mesh.get_group()
    first = dist.get_global_rank(group, 0)
    for each in (*layer.parameters(), *layer.buffers()):
        if id(each) not in divided and not each.is_meta:
            dist.broadcast(each.detach(), src=first, group=group)


def _divide(bank: Experts, share: Share, mesh: DeviceMesh, placement: ExpertPlacement | None) -> None:
    """Leaves a rank its own experts: of stacked weights DTensors, of a list its modules."""
    if isinstance(bank, FFNExperts):
        for name, weight in list(bank.named_parameters(recurse=False)):
            rows = weight.detach()
            if placement is not None:
                rows = rows[torch.tensor(placement.experts_of_rank, device=rows.device).flatten()]
            placed = distribute_tensor(rows, mesh, [Shard(0)])
            bank.register_parameter(name, nn.Parameter(placed, requires_grad=weight.requires_grad))
        return
    holder = cast(Any, bank)
    group = mesh.get_group()
    first = dist.get_global_rank(group, 0)
    for each in (*bank.parameters(), *bank.buffers()):
        if not each.is_meta:
            dist.broadcast(each.detach(), src=first, group=group)
    holder.experts = HeldModules(holder.experts, share.local)
