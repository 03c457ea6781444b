"""Fewer experts in the sparse layers of a model, in place: unused ones left out, or similar ones merged.

Letters: E experts, N experts that remain, G parts of an MLP.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.experts.base import Experts
from moekit.experts.ffn import FFNExperts
from moekit.experts.modules import ModuleExperts
from moekit.interop.upcycling.layer import expert_weights, experts_of
from moekit.interop.upcycling.mlp import MLPWeights
from moekit.interop.upcycling.routers import MergedRouter, check_router, router_of
from moekit.interop.upcycling.usage import Place, Usage, load_of, num_experts_of, places_of, refuse_layer
from moekit.layer import SparseMoE
from moekit.routers.base import Router
from moekit.routers.top_k import TopKRouter

Entry = TypeVar("Entry")


def prune_experts_(
    model: nn.Module,
    where: str | Sequence[str] | None = None,
    *,
    keep: int | Mapping[str, Sequence[int]],
    usage: Usage | None = None,
) -> dict[str, list[int]]:
    """Leaves out experts of the sparse layers of a model, in place.

    Kept are the most used experts, in their order; of layers that were upcycled with a ``granularity``, as many of each
    part of the MLP. The router loses the rows of the others, so their tokens go to what it liked next.
    A token whose experts all stay keeps its output if the gates are renormalised (those of
    :func:`~moekit.interop.upcycle_` are) and no selection bias is added to softmax scores, which grow as experts leave;
    other tokens change, so fine-tune afterwards. Make the optimiser after this call.

    Args:
        model: A model that holds sparse layers.
        where: Pattern of the names of layers that :func:`~moekit.interop.upcycle_` made, or of
            :class:`~moekit.SparseMoE`; or several. All by default.
        keep: Number of experts that stay in each layer, at least the router's ``top_k``; or their ids by the name of
            the layer, as this function returns them, to prune a model before its state is loaded.
        usage: With a number: a record of :func:`~moekit.inspect.record_routing`, or by the name of the layer its loads,
            ``(E,)``, or its :class:`~moekit.RouterStats`.

    Returns:
        Ids of the experts that stayed, by layer.

    Raises:
        ValueError: If a layer has a part that is not understood, or an argument does not fit; nothing is changed then.

    Example:
        >>> from moekit.inspect import record_routing
        >>> model = nn.ModuleDict({"moe": SparseMoE.ffn(8, 16, num_experts=8, top_k=2)})
        >>> with record_routing(model) as record:
        ...     _ = model["moe"](torch.randn(100, 8))
        >>> kept = prune_experts_(model, keep=4, usage=record)
        >>> len(kept["moe"]), model["moe"].experts.num_experts
        (4, 4)
    """
    changes: dict[str, tuple[Place, Router, Experts, list[int]]] = {}
    for name, place in places_of(model, where).items():
        check_router(name, place.moe.router)
        ids = _kept(name, place, keep, usage)
        top_k = place.moe.router.top_k
        if len(ids) < top_k:
            raise ValueError(f"keep must be at least the top_k={top_k} of layer {name!r}, got {len(ids)}.")
        router = router_of(name, place.moe.router, ids)
        changes[name] = place, router, _selected(name, place.moe, ids), ids
    for place, router, experts, ids in changes.values():
        _put(place, router, experts, [place.shard_of_expert[each] for each in ids])
    return {name: ids for name, (*_, ids) in changes.items()}


def merge_experts_(
    model: nn.Module,
    where: str | Sequence[str] | None = None,
    *,
    into: int | Mapping[str, Sequence[Sequence[int]]],
    usage: Usage | None = None,
) -> dict[str, list[list[int]]]:
    """Merges experts of the sparse layers of a model into fewer ones, in place.

    The weights of a group of experts are averaged, by their loads if ``usage`` is given. The router stays, and gives to
    a group what it gave to its members (:class:`~moekit.interop.MergedRouter`): where these are alike, as after
    :func:`~moekit.interop.upcycle_`, the layer computes what it did. Averages make sense for experts that
    started from the same weights. Hidden units of others are in no common order; they are not put into one here.

    Given a number, the most used experts are the centres of the groups, and each other one joins the centre whose
    weights are nearest. Experts that started from different parts of an MLP are never merged.

    Args:
        model: A model that holds sparse layers of :class:`~moekit.FFNExperts`.
        where: See :func:`prune_experts_`.
        into: Number of experts that remain in each layer; or the groups by the name of the layer, as this function
            returns them. Every expert must be in one group.
        usage: See :func:`prune_experts_`. Needed with a number.

    Returns:
        Ids of the experts that were merged into each one that remains, by layer.

    Raises:
        ValueError: If a layer has a part that is not understood, or an argument does not fit; nothing is changed then.

    Reference:
        Li et al. 2024, Merge, Then Compress, https://arxiv.org/abs/2310.01334: average by usage, the most
        used experts as centres. There experts join the centre with the most similar router logits, and are permuted.

    Example:
        >>> from moekit.interop import upcycle_
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)))
        >>> _ = upcycle_(model, "0", num_experts=4, top_k=2)
        >>> x = torch.randn(5, 8)
        >>> before = model(x)
        >>> merge_experts_(model, "0", into={"0": [[0, 1], [2, 3]]})
        {'0': [[0, 1], [2, 3]]}
        >>> torch.allclose(model(x), before, atol=1e-6)
        True
    """
    changes: dict[str, tuple[Place, Router, Experts, list[list[int]]]] = {}
    for name, place in places_of(model, where).items():
        check_router(name, place.moe.router)
        bank = place.moe.experts
        if not isinstance(bank, FFNExperts) or type(bank) is not FFNExperts:
            refuse_layer(name, f"has experts of class {type(bank).__name__}, not FFNExperts, which cannot be averaged")
        load = None if usage is None else load_of(usage, name, bank.num_experts)
        groups = _groups(name, place, bank, into, load)
        weights = expert_weights(bank)
        merged = [average([weights[each] for each in group], _part(load, group)) for group in groups]
        router = copy.deepcopy(place.moe.router)
        if isinstance(router, TopKRouter):
            router.return_logits = True
        group_of_expert = [next(i for i, group in enumerate(groups) if each in group) for each in range(len(weights))]
        assert isinstance(router, Router)
        merged_router = MergedRouter(router, group_of_expert).train(place.moe.router.training)
        changes[name] = place, merged_router, experts_of(merged, bank.activation, bank), groups
    for place, router, experts, groups in changes.values():
        _put(place, router, experts, [place.shard_of_expert[group[0]] for group in groups])
    return {name: groups for name, (*_, groups) in changes.items()}


@torch.no_grad()
def average(weights: Sequence[MLPWeights], load: Float[Tensor, "N"] | None) -> MLPWeights:
    """Returns the mean of the weights of experts, weighted by their loads; exact where they are equal."""
    share = torch.ones(len(weights), dtype=torch.float64) if load is None or not bool(load.any()) else load
    share = share / share.sum()
    return MLPWeights(*(_mean(list(each), share) for each in zip(*weights, strict=True)))  # pyright: ignore


def _mean(tensors: Sequence[Tensor | None], share: Tensor) -> Tensor | None:
    first = tensors[0]
    if first is None:
        return None
    wide = first.to(torch.promote_types(first.dtype, torch.float32))
    # Of differences, so that equal weights give just these.
    total = torch.zeros_like(wide)
    for each, part in zip(tensors, cast(list[float], share.tolist()), strict=True):
        assert each is not None
        total.add_(each.to(wide) - wide, alpha=part)
    return (wide + total).to(first.dtype)


def _kept(name: str, place: Place, keep: int | Mapping[str, Sequence[int]], usage: Usage | None) -> list[int]:
    num_experts = num_experts_of(place.moe)
    if not isinstance(keep, int):
        ids = list(_of_layer("keep", keep, name))
        if len(set(ids)) < len(ids) or not all(0 <= each < num_experts for each in ids):
            raise ValueError(f"keep of layer {name!r} must be different ids of its {num_experts} experts, got {ids}.")
        return ids
    shares = place.shard_of_expert
    parts = sorted(set(shares))
    _check_number("keep", keep, name, num_experts, len(parts), usage)
    assert usage is not None
    load = load_of(usage, name, num_experts)
    return sorted(each for part in parts for each in _most_used(load, shares, part, keep // len(parts)))


def _groups(
    name: str,
    place: Place,
    bank: FFNExperts,
    into: int | Mapping[str, Sequence[Sequence[int]]],
    load: Tensor | None,
) -> list[list[int]]:
    shares, num_experts = place.shard_of_expert, bank.num_experts
    if not isinstance(into, int):
        groups = [list(group) for group in _of_layer("into", into, name)]
        if sorted(each for group in groups for each in group) != list(range(num_experts)) or not all(groups):
            raise ValueError(
                f"into of layer {name!r} must hold each of its {num_experts} experts in one group, got {groups}."
            )
        mixed = [group for group in groups if len({shares[each] for each in group}) > 1]
        if mixed:
            raise ValueError(f"into of layer {name!r} must not merge different parts of the MLP, got {mixed[0]}.")
        return groups
    parts = sorted(set(shares))
    _check_number("into", into, name, num_experts, len(parts), load)
    assert load is not None
    flat = torch.cat([bank.up_proj.detach().flatten(1), bank.down_proj.detach().flatten(1)], dim=1).float()
    centres = sorted(each for part in parts for each in _most_used(load, shares, part, into // len(parts)))
    groups = {centre: [centre] for centre in centres}
    for expert in range(num_experts):
        if expert not in groups:
            near = [centre for centre in centres if shares[centre] == shares[expert]]
            distances = (flat[near] - flat[expert]).square().sum(-1)
            groups[near[int(distances.argmin())]].append(expert)
    return [sorted(group) for group in groups.values()]


def _check_number(argument: str, number: int, name: str, num_experts: int, parts: int, usage: object) -> None:
    if not 1 <= number <= num_experts or number % parts:
        multiple = f", a multiple of its {parts} parts" if parts > 1 else ""
        raise ValueError(
            f"{argument} must be from 1 to the {num_experts} experts of layer {name!r}{multiple}, got {number}."
        )
    if usage is None:
        raise ValueError(
            f"usage must be given with {argument}={number}, to tell which experts are used most: record_routing of "
            "moekit.inspect counts."
        )


def _of_layer(argument: str, by_layer: Mapping[str, Entry], name: str) -> Entry:
    if name not in by_layer:
        raise ValueError(f"{argument} must have an entry for layer {name!r}, got {', '.join(map(repr, by_layer))}.")
    return by_layer[name]


def _most_used(load: Tensor, shares: Sequence[int], part: int, number: int) -> list[int]:
    experts = [each for each, share in enumerate(shares) if share == part]
    return sorted(experts, key=lambda each: (-load[each].item(), each))[:number]


def _part(load: Tensor | None, group: Sequence[int]) -> Tensor | None:
    return None if load is None else load[list(group)]


def _selected(name: str, moe: SparseMoE, ids: Sequence[int]) -> Experts:
    bank = moe.experts
    if isinstance(bank, FFNExperts) and type(bank) is FFNExperts:
        weights = expert_weights(bank)
        return experts_of([weights[each] for each in ids], bank.activation, bank)
    if isinstance(bank, ModuleExperts) and type(bank) is ModuleExperts:
        chosen = [bank.experts[each] for each in ids]
        return ModuleExperts(chosen, token_ndim=bank.token_ndim, out_shape=bank.out_shape).train(bank.training)
    refuse_layer(name, f"has experts of class {type(bank).__name__}, not FFNExperts or ModuleExperts")


def _put(place: Place, router: Router, experts: Experts, shard_of_expert: Sequence[int]) -> None:
    place.moe.router = router
    place.moe.experts = experts
    if place.upcycled is not None:
        place.upcycled.shard_of_expert = tuple(shard_of_expert)
