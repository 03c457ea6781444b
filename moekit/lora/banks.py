"""Banks of experts that take adapters: those of moekit, and stacked experts of ``transformers``.

A bank stays the module that it is, with its parameters and their names; its class changes to one that adds what the
adapters in its attribute ``lora`` compute.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from moekit.changed_class import ChangedClass, changed_class
from moekit.experts.ffn import FFNExperts
from moekit.experts.products import DenseProduct, Products, ffn_by_products
from moekit.interop.upcycling.names import matching
from moekit.lora.adapter import ExpertsLoRA, Shapes

NAME = "lora"
"""The attribute of a bank that holds its adapters."""


class Adapted(ChangedClass):
    """What a bank with adapters is, before the class that it had."""

    def forward(self, *inputs: Any) -> Tensor:
        """Computes what the bank did, with what the adapters add where they are active."""
        bank = cast(Any, self)
        if not adapters_of(self).is_active:
            return cast(Any, super()).forward(*inputs)
        if isinstance(self, FFNExperts):
            x, plan, gates = inputs
            bank._check_input(x, plan)
            products = adapters_of(self).adapted(products_of(self))
            return ffn_by_products(x, gates, plan, products, self.activation, self.impl)
        from moekit.interop.transformers._experts import experts_forward_by

        weight = weights_of(self)[0]
        products = adapters_of(self).adapted(products_of(self))
        return experts_forward_by(self, cast(Any, inputs), products, num_experts=weight.shape[0], dtype=weight.dtype)

    def _check_settings(self) -> None:
        cast(Any, super())._check_settings()
        check_recompute("recompute", cast(Any, self).recompute)


def check_recompute(name: str, recompute: str) -> None:
    """Raises ``ValueError`` unless it is the default: experts with adapters do not run fused."""
    if recompute != "activation":
        raise ValueError(
            f'{name} must be "activation" for experts with adapters, which run unfused, got {recompute!r}.'
        )


def adapters_of(bank: nn.Module) -> ExpertsLoRA:
    """Returns the adapters of a bank that has some."""
    return cast(ExpertsLoRA, bank.get_submodule(NAME))


def weights_of(bank: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the matrices ``(E, F1, D)`` and ``(E, D2, F)`` of a bank; of transposed ones, views."""
    if isinstance(bank, FFNExperts):
        return bank.up_proj, bank.down_proj
    from moekit.interop.transformers._experts import stacked_weights

    return stacked_weights(bank)[:2]


def products_of(bank: nn.Module) -> Products:
    """Returns the products of a bank without its adapters."""
    if isinstance(bank, FFNExperts):
        return Products(DenseProduct(bank.up_proj, bank.up_bias), DenseProduct(bank.down_proj, bank.down_bias))
    from moekit.interop.transformers._experts import dense_products, stacked_weights

    return dense_products(stacked_weights(bank))


def shapes_of(bank: nn.Module) -> Shapes:
    """Returns the sizes of a bank's products."""
    return Shapes(*(cast(tuple[int, int, int], tuple(weight.shape)) for weight in weights_of(bank)))


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
    banks: dict[str, nn.Module] = {name: each for name, each in _modules(model) if isinstance(each, Adapted)}
    if not banks:
        raise ValueError(
            f"model must hold experts with adapters, got a {type(model).__name__} without any: add_lora_ adds them."
        )
    return banks


def banks_to_adapt(model: nn.Module, where: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Returns the banks of a model that get adapters, by name.

    Args:
        model: The model.
        where: Pattern of the names of banks, or of modules that each hold some; or several. All by default.

    Raises:
        ValueError: If there are none, or one cannot be adapted.
    """
    chosen = {"": model} if where is None else matching(model, where)
    banks: dict[str, nn.Module] = {}
    for outer, module in chosen.items():
        inside = {_joined(outer, name): each for name, each in _modules(module) if _holds_experts(name, each)}
        if not inside:
            place = f"a {type(model).__name__}" if where is None else f"{outer!r}, a {type(module).__name__},"
            raise ValueError(f"model must hold FFNExperts or stacked experts of transformers, got {place} without any.")
        banks |= inside
    for name, bank in banks.items():
        _check_adaptable(name, bank)
    return banks


def _holds_experts(name: str, module: nn.Module) -> bool:
    if isinstance(module, FFNExperts) or _is_stacked(module):
        return True
    return name.rpartition(".")[2] == "experts" and type(module).__module__.startswith("transformers.models.")


def _is_stacked(module: nn.Module) -> bool:
    """Returns whether a module has what ``transformers`` gives experts whose implementation can be chosen."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_bias", "down_proj"))


def _check_adaptable(name: str, bank: nn.Module) -> None:
    if isinstance(bank, Adapted):
        raise ValueError(f"experts {name!r} must have no adapters yet: call remove_lora_ first.")
    if isinstance(bank, FFNExperts):
        if type(bank) is not FFNExperts:
            kind = type(bank).__name__
            raise ValueError(f"experts {name!r} must be FFNExperts, got a {kind}, which may compute otherwise.")
        check_recompute(f"recompute of experts {name!r}", bank.recompute)
        return
    if not _is_stacked(bank):
        raise ValueError(
            f"experts {name!r} must be stacked, as those of transformers whose implementation can be chosen, got a "
            f"{type(bank).__name__}: leave them out with where, or convert their blocks by from_transformers."
        )


def _modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    # torch's own types leave it partially unknown.
    return cast(Iterable[tuple[str, nn.Module]], model.named_modules())


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer and name else outer or name
