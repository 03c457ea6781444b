"""Experts of a model in int8 and back, in place."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from moekit.banks import banks_in, is_transposed, stacked, weight_names
from moekit.changed_class import changed_class
from moekit.parts import check_module, named_modules
from moekit.quantization.int8 import Int8, quantized, scale_name
from moekit_kernels.grouped_gemm_int8 import dequantize


@torch.no_grad()
def quantize_experts_(model: nn.Module, where: str | Sequence[str] | None = None, *, bits: int = 8) -> list[str]:
    """Makes the weights of experts integers of 8 bits, in place: half the memory of bfloat16, a quarter of float32.

    Each output of each expert has a scale in float32, ``max |w| / 127``; tokens, biases and sums keep their dtypes.
    Quantised are :class:`~moekit.FFNExperts`, and stacked experts of ``transformers`` whose implementation can be
    chosen, which moekit then computes whatever was chosen. Matrices keep their names, as buffers, each beside its
    scales, ``NAME_scale``; biases stay parameters. Weights of integers are not trained:
    :func:`~moekit.lora.add_lora_` trains adapters beside them.

    In computing, never more than one expert is dequantised at a time on CPU, and none in the Triton kernel, which
    widens integers in registers. (``impl="torch"`` on a GPU dequantises a bank for the call.) Experts run unfused:
    a grouped GEMM for each product, the activation, combine. Router, plan and everything else stay as they are.

    To load a checkpoint, build the model, call this (on the meta device, if it is large), then ``load_state_dict``:
    it takes integers and scales as they are, and quantises floating weights bank by bank on the way.

    Args:
        model: A model that holds experts.
        where: Pattern of the names of experts, or of modules that each hold some; or several. All by default. See
            :func:`~moekit.interop.upcycle_` for patterns.
        bits: 8.

    Returns:
        Names of the experts.

    Raises:
        ValueError: If ``bits`` is another number, there are no experts, or some that are not understood, hold adapters,
            or are quantised already; nothing is changed then. If weights are not finite.

    Example:
        >>> from moekit import SparseMoE
        >>> model = nn.Sequential(SparseMoE.ffn(64, 128, num_experts=8, top_k=2))
        >>> before = model(x := torch.randn(5, 64)).output
        >>> quantize_experts_(model), model[0].experts.up_proj.dtype
        (['0.experts'], torch.int8)
        >>> error = (model(x).output - before).norm() / before.norm()
        >>> bool(error < 0.02)
        True
    """
    check_module("model", model)
    if bits != 8:
        raise ValueError(f"bits must be 8, the only width there is, got {bits}.")
    banks = banks_in(model, where)
    for name, bank in banks.items():
        if isinstance(bank, Int8):
            raise ValueError(f"experts {name!r} must not be quantised yet, but are: choose others with where.")
        if dict(bank.named_children()).get("lora") is not None:
            raise ValueError(f"experts {name!r} must have no adapters yet: quantise them before add_lora_.")
        weights = [bank.get_parameter(each) for each in weight_names(bank)]
        if not all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights):
            kinds = ", ".join(f"{type(weight).__name__} of {weight.dtype}" for weight in weights)
            raise ValueError(f"experts {name!r} must have plain floating weights to be quantised, got {kinds}.")
    for bank in banks.values():
        float_dtype = stacked(bank).up_proj.dtype
        for name in weight_names(bank):
            values, scale = quantized(bank, bank.get_parameter(name))
            delattr(bank, name)
            bank.register_buffer(name, values)
            bank.register_buffer(scale_name(name), scale)
        for parameter in bank.parameters():
            parameter.requires_grad_(False)
        bank.__class__ = changed_class(Int8, type(bank))
        cast(Int8, bank).float_dtype = float_dtype
    return list(banks)


@torch.no_grad()
def dequantize_experts_(model: nn.Module) -> list[str]:
    """Makes the integers of all quantised experts of a model floating weights again, in the dtype that they had.

    They keep the error of the quantisation, and stay frozen.

    Args:
        model: A model after :func:`quantize_experts_`.

    Returns:
        Names of the experts.

    Raises:
        ValueError: If the model has no quantised experts, or their class was changed since, as by adapters.
    """
    banks = {name: bank for name, bank in named_modules(model) if isinstance(bank, Int8)}
    if not banks:
        raise ValueError(f"model must hold quantised experts, got a {type(model).__name__} without any.")
    for name, bank in banks.items():
        bases = type(bank).__bases__
        if bases[0] is not Int8 or type(bank) is not changed_class(Int8, bases[1]):
            raise ValueError(
                f"experts {name!r} must have the class that quantize_experts_ gave them, got a {type(bank).__name__}: "
                "undo what changed it first, e.g. by remove_lora_."
            )
    for bank in banks.values():
        for name in weight_names(bank):
            values, scale = bank.get_buffer(name), bank.get_buffer(scale_name(name))
            rows = values.mT if is_transposed(bank) else values
            weight = dequantize(rows, scale, bank.float_dtype)
            delattr(bank, name)
            delattr(bank, scale_name(name))
            weight = weight.mT.contiguous() if is_transposed(bank) else weight
            bank.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        own = type(bank).__bases__[1]
        del bank.float_dtype
        cast(nn.Module, bank).__class__ = own
    return list(banks)
