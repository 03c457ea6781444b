"""Adapters of the experts of a model: added, merged, taken off, saved and loaded.

Letters: E experts, r rank, D and D2 widths of input and output, F hidden width, F1 columns of the pre-activation.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from moekit.banks import stacked
from moekit.checks import check_choice
from moekit.lora.adapter import PRODUCTS, ExpertsLoRA
from moekit.lora.banks import (
    NAME,
    adapt,
    adapted_banks,
    adapters_of,
    banks_to_adapt,
    check_releasable,
    float_dtype_of,
    release,
    shapes_of,
)
from moekit.parts import check_module

Product = Literal["up", "down"]


def add_lora_(
    model: nn.Module,
    where: str | Sequence[str] | None = None,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    products: Sequence[Product] = ("up", "down"),
    freeze: bool = True,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, ExpertsLoRA]:
    """Gives the experts of a model low-rank adapters, in place.

    Each expert gets a pair of thin matrices for each product, ``E * r * (D + F1)`` and ``E * r * (F + D2)`` parameters
    in a bank, which are multiplied by grouped GEMMs. The sum of weights and adapters is never made, and no gradient of
    frozen weights is computed. The model first computes what it did.

    Adapted are :class:`~moekit.FFNExperts`, and stacked experts of ``transformers`` whose implementation can be
    chosen, which moekit then computes whatever was chosen; either also after
    :func:`~moekit.quantization.quantize_experts_`. Weights keep their names; adapters are in the attribute
    ``lora`` of the experts. Experts with adapters run unfused: two grouped GEMMs for a product, the activation,
    combine. Make the optimiser after this call, and apply FSDP or ``torch.compile`` after it too.

    Args:
        model: A model that holds experts.
        where: Pattern of the names of experts, such as ``"blocks.*.moe.experts"``, or of modules that each hold some;
            or several. All by default. See :func:`~moekit.interop.upcycle_` for patterns.
        rank: ``r``.
        alpha: What adapters add is scaled by ``alpha / rank``.
        rank_stabilized: Scales by ``alpha / sqrt(rank)`` instead, so that a high rank does not learn more slowly.
        dropout: Share of the numbers that an adapter reads that are set to zero in training.
        products: Which products of each expert are adapted.
        freeze: Whether everything else in ``model`` is frozen; else all stays as trainable as it is.
        dtype: Of the adapters; that of the weights by default. They are multiplied in the dtype of the rows.
        generator: Of the random numbers.

    Returns:
        The adapters, by the name of the experts.

    Raises:
        ValueError: If an argument is out of range, or there are no experts, or some that cannot be adapted; the model
            is then as it was.

    Reference:
        Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685; Kalajdzievski 2023, A Rank Stabilization Scaling
        Factor, https://arxiv.org/abs/2312.03732.

    Example:
        >>> from moekit import SparseMoE
        >>> model = nn.Sequential(SparseMoE.ffn(16, 32, num_experts=8, top_k=2))
        >>> before = model(x := torch.randn(5, 16)).output
        >>> adapters = add_lora_(model, rank=4)
        >>> list(adapters), sum(p.numel() for p in lora_parameters(model))
        (['0.experts'], 4096)
        >>> torch.equal(model(x).output, before)
        True
    """
    check_module("model", model)
    chosen = tuple(products)
    for product in chosen:
        check_choice("products", product, PRODUCTS)
    if not chosen:
        raise ValueError("products must name at least one of 'up', 'down', got none.")
    added: dict[str, tuple[nn.Module, ExpertsLoRA]] = {}
    for name, bank in banks_to_adapt(model, where).items():
        adapters = ExpertsLoRA(
            shapes_of(bank),
            rank,
            alpha=alpha,
            rank_stabilized=rank_stabilized,
            dropout=dropout,
            products=chosen,
            device=stacked(bank).up_proj.device,
            dtype=float_dtype_of(bank) if dtype is None else dtype,
        )
        if generator is not None:
            adapters.reset_parameters(generator)
        added[name] = bank, adapters.train(bank.training)
    for bank, adapters in added.values():
        adapt(bank, adapters)
    if freeze:
        kept = {id(parameter) for parameter in lora_parameters(model)}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in kept)
    return {name: adapters for name, (_, adapters) in added.items()}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of all adapters in a model, for an optimiser.

    Raises:
        ValueError: If there are none.
    """
    return [parameter for bank in adapted_banks(model).values() for parameter in adapters_of(bank).parameters()]


@torch.no_grad()
def merge_lora_(model: nn.Module) -> None:
    """Adds what the adapters compute to the weights of their experts, which then run as fast as plain ones.

    Weights are written in place, expert by expert, each sum rounded once to their dtype. While they are merged, a state
    dict holds the sums and no adapters: it is that of a plain model. Adapters that are merged already stay so.

    Raises:
        ValueError: If the model has no adapters, or weights that are no plain tensors, such as sharded ones.
    """
    _change(model, to_merged=True)


@torch.no_grad()
def unmerge_lora_(model: nn.Module) -> None:
    """Subtracts from the weights of experts what :func:`merge_lora_` added.

    They are then what they were but for rounding in their dtype. Adapters that are not merged stay so.

    Raises:
        ValueError: As :func:`merge_lora_`.
    """
    _change(model, to_merged=False)


def remove_lora_(model: nn.Module) -> None:
    """Takes the adapters off. Weights stay as they are, merged or not, and what was frozen stays frozen.

    Raises:
        ValueError: If the model has none, or the class of its experts was changed since, as by FSDP.
    """
    banks = adapted_banks(model)
    for name, bank in banks.items():
        check_releasable(name, bank)
    for bank in banks.values():
        release(bank)


@contextmanager
def lora_disabled(model: nn.Module) -> Generator[None]:
    """Lets a model compute without its adapters in a ``with`` block, as the reference of a preference loss does.

    Raises:
        ValueError: If it has none, or they are merged.
    """
    adapters = [adapters_of(bank) for bank in adapted_banks(model).values()]
    _check_not_merged(model, "disabled")
    before = [each.enabled for each in adapters]
    try:
        for each in adapters:
            each.enabled = False
        yield
    finally:
        for each, enabled in zip(adapters, before, strict=True):
            each.enabled = enabled


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the part of a model's state dict that is of adapters: what a small checkpoint holds.

    Raises:
        ValueError: If the model has none, or they are merged.
    """
    _check_not_merged(model, "saved or loaded")
    return {
        _key(name, key): tensor
        for name, bank in adapted_banks(model).items()
        for key, tensor in adapters_of(bank).state_dict().items()
    }


def load_lora_state_dict_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads adapters that :func:`lora_state_dict` returned, into a model that has some of the same sizes and scaling.

    Args:
        model: A model after :func:`add_lora_`.
        state: Tensors by name.

    Raises:
        ValueError: If names, shapes or the scaling do not fit, or the adapters are merged; nothing is loaded then.
    """
    own = lora_state_dict(model)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"state must hold the adapters of this model, got {len(missing)} names too few {missing[:3]} and "
            f"{len(unexpected)} too many {unexpected[:3]}."
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"state[{name!r}] must have shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}: add adapters of "
                "the same rank."
            )
    for name, bank in adapted_banks(model).items():
        adapters, stored = adapters_of(bank), float(state[_key(name, "stored_scaling")])
        if not adapters.has_scaling(stored):
            raise ValueError(
                f"state must be of adapters of scaling {adapters.scaling:g} for experts {name!r}, got {stored:g}: add "
                "them with the same alpha and rank_stabilized."
            )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _key(bank: str, name: str) -> str:
    return ".".join(filter(None, (bank, NAME, name)))


def _check_not_merged(model: nn.Module, what: str) -> None:
    merged = [name for name, bank in adapted_banks(model).items() if adapters_of(bank).merged]
    if merged:
        raise ValueError(
            f"adapters must not be merged to be {what}, got {merged[0]!r} merged: call unmerge_lora_ first."
        )


def _change(model: nn.Module, *, to_merged: bool) -> None:
    banks = {name: bank for name, bank in adapted_banks(model).items() if adapters_of(bank).merged != to_merged}
    for name, bank in banks.items():
        for weight in stacked(bank)[:2]:
            if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
                raise ValueError(
                    f"experts {name!r} must have plain floating weights to be merged, got a {type(weight).__name__} of "
                    f"{weight.dtype}: merge a copy that is neither sharded nor quantised."
                )
    for bank in banks.values():
        adapters = adapters_of(bank)
        for product, weight in zip(PRODUCTS, stacked(bank)[:2], strict=True):
            for expert in range(weight.shape[0]):
                update = adapters.update(product, expert)
                if update is not None:
                    wide = weight[expert].to(update.dtype)
                    weight[expert].copy_(wide + update if to_merged else wide - update)
        adapters.merged = to_merged
