"""Banks of feed-forward experts in a model: those of moekit, and stacked experts of ``transformers``.

Functions that change banks in place find them here, and read their weights whatever they are called and however they
lie.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from moekit.changed_class import ChangedClass
from moekit.experts.ffn import FFNExperts
from moekit.interop.upcycling.names import matching
from moekit.parts import named_modules
from moekit_kernels.moe_ffn import ExpertWeights


def weight_names(bank: nn.Module) -> tuple[str, str]:
    """Returns the names of a bank's two stacked matrices."""
    if isinstance(bank, FFNExperts) or not getattr(bank, "has_gate", True):
        return "up_proj", "down_proj"
    return "gate_up_proj", "down_proj"


def is_transposed(bank: nn.Module) -> bool:
    """Returns whether a bank keeps its matrices as ``(E, in, out)``."""
    return not isinstance(bank, FFNExperts) and bool(cast(Any, bank).is_transposed)


def stacked(bank: nn.Module) -> ExpertWeights:
    """Returns matrices ``(E, out, in)`` and biases of a bank, of whatever dtype; of transposed matrices, views."""
    if isinstance(bank, FFNExperts):
        return ExpertWeights(bank.up_proj, bank.down_proj, bank.up_bias, bank.down_bias)
    from moekit.interop.transformers._experts import stacked_weights

    return stacked_weights(bank)


def own_class(bank: nn.Module) -> type[nn.Module]:
    """Returns the class that a bank had before any change."""
    kind = type(bank)
    while issubclass(kind, ChangedClass):
        kind = cast(type[nn.Module], kind.__bases__[1])
    return kind


def banks_in(model: nn.Module, where: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Returns the banks of a model by name.

    Args:
        model: The model.
        where: Pattern of the names of banks, or of modules that each hold some; or several. All by default.

    Raises:
        ValueError: If there are none, or one is neither of moekit nor stacked.
    """
    chosen = {"": model} if where is None else matching(model, where)
    banks: dict[str, nn.Module] = {}
    for outer, module in chosen.items():
        inside = {_joined(outer, name): each for name, each in named_modules(module) if _holds_experts(name, each)}
        if not inside:
            place = f"a {type(model).__name__}" if where is None else f"{outer!r}, a {type(module).__name__},"
            raise ValueError(f"model must hold FFNExperts or stacked experts of transformers, got {place} without any.")
        banks |= inside
    for name, bank in banks.items():
        _check_understood(name, bank)
    return banks


def check_recompute(name: str, recompute: str) -> None:
    """Raises ``ValueError`` unless it is the default: changed experts do not run fused."""
    if recompute != "activation":
        raise ValueError(
            f'{name} must be "activation" for experts with adapters or int8 weights, which run unfused, got '
            f"{recompute!r}."
        )


def _holds_experts(name: str, module: nn.Module) -> bool:
    if isinstance(module, FFNExperts) or _is_stacked(module):
        return True
    return name.rpartition(".")[2] == "experts" and type(module).__module__.startswith("transformers.models.")


def _is_stacked(module: nn.Module) -> bool:
    """Returns whether a module has what ``transformers`` gives experts whose implementation can be chosen."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_bias", "down_proj"))


def _check_understood(name: str, bank: nn.Module) -> None:
    if isinstance(bank, FFNExperts):
        if bank.is_divided:
            raise ValueError(f"experts {name!r} must be whole on every rank, got experts that are divided among ranks.")
        if own_class(bank) is not FFNExperts:
            kind = type(bank).__name__
            raise ValueError(f"experts {name!r} must be FFNExperts, got a {kind}, which may compute otherwise.")
        check_recompute(f"recompute of experts {name!r}", bank.recompute)
    elif not _is_stacked(bank):
        raise ValueError(
            f"experts {name!r} must be stacked, as those of transformers whose implementation can be chosen, got a "
            f"{type(bank).__name__}: leave them out with where, or convert their blocks by from_transformers."
        )


def _joined(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer and name else outer or name
