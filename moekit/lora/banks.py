"""Banks of experts that have adapters.

A bank stays the module that it is, with its weights and their names; its class changes to one that adds what the
adapters in its attribute ``lora`` compute.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from moekit.banks import banks_in, check_recompute, stacked
from moekit.changed_class import ChangedClass, changed_class
from moekit.experts.ffn import FFNExperts
from moekit.experts.products import DenseProduct, Products, ffn_by_products
from moekit.lora.adapter import ExpertsLoRA, Shapes
from moekit.parts import named_modules
from moekit.quantization.int8 import Int8, int8_products

NAME = "lora"
"""The attribute of a bank that holds its adapters."""


class Adapted(ChangedClass):
    """What a bank with adapters is, before the class that it had."""

    def forward(self, *inputs: Any) -> Tensor:
        """Computes what the bank did, with what the adapters add where they are active."""
        bank = cast(Any, self)
        if not adapters_of(self).is_active:
            return cast(Any, super()).forward(*inputs)
        products = adapters_of(self).adapted(_products_of(self))
        if isinstance(self, FFNExperts):
            x, plan, gates = inputs
            bank._check_input(x, plan)
            return ffn_by_products(x, gates, plan, products, self.activation, self.impl)
        from moekit.interop.transformers._experts import experts_forward_by

        num_experts, dtype = stacked(self).up_proj.shape[0], float_dtype_of(self)
        return experts_forward_by(self, cast(Any, inputs), products, num_experts=num_experts, dtype=dtype)

    def _check_settings(self) -> None:
        cast(Any, super())._check_settings()
        check_recompute("recompute", cast(FFNExperts, self).recompute)


def adapters_of(bank: nn.Module) -> ExpertsLoRA:
    """Returns the adapters of a bank that has some."""
    return cast(ExpertsLoRA, bank.get_submodule(NAME))


def shapes_of(bank: nn.Module) -> Shapes:
    """Returns the sizes of a bank's products."""
    return Shapes(*(cast(tuple[int, int, int], tuple(weight.shape)) for weight in stacked(bank)[:2]))


def float_dtype_of(bank: nn.Module) -> torch.dtype:
    """Returns the dtype of a bank's weights, or that which they had before they were quantised."""
    return bank.float_dtype if isinstance(bank, Int8) else stacked(bank).up_proj.dtype


def adapt(bank: nn.Module, adapters: ExpertsLoRA) -> None:
    """Gives a bank its adapters."""
    bank.add_module(NAME, adapters)
    bank.__class__ = changed_class(Adapted, type(bank))


def check_releasable(name: str, bank: nn.Module) -> None:
    """Raises ``ValueError`` if the class of a bank was changed after it got its adapters."""
    bases = type(bank).__bases__
    if bases[0] is not Adapted or type(bank) is not changed_class(Adapted, bases[1]):
        raise ValueError(
            f"experts {name!r} must have the class that add_lora_ gave them, got a {type(bank).__name__}: undo what "
            "changed it first."
        )


def release(bank: nn.Module) -> None:
    """Takes the adapters from a bank."""
    delattr(bank, NAME)
    bank.__class__ = type(bank).__bases__[1]


def adapted_banks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the banks of a model that have adapters, by name.

    Raises:
        ValueError: If there are none.
    """
    banks: dict[str, nn.Module] = {name: each for name, each in named_modules(model) if isinstance(each, Adapted)}
    if not banks:
        raise ValueError(
            f"model must hold experts with adapters, got a {type(model).__name__} without any: add_lora_ adds them."
        )
    return banks


def banks_to_adapt(model: nn.Module, where: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Returns the banks of a model that get adapters, by name; see :func:`~moekit.banks.banks_in`.

    Raises:
        ValueError: If there are none, or one cannot be adapted.
    """
    banks = banks_in(model, where)
    for name, bank in banks.items():
        if isinstance(bank, Adapted):
            raise ValueError(f"experts {name!r} must have no adapters yet: call remove_lora_ first.")
    return banks


def _products_of(bank: nn.Module) -> Products:
    """Returns the products of a bank without its adapters."""
    if isinstance(bank, Int8):
        return int8_products(bank)
    up_proj, down_proj, up_bias, down_bias = stacked(bank)
    return Products(DenseProduct(up_proj, up_bias), DenseProduct(down_proj, down_bias))
