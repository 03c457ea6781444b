"""Banks of experts whose weights are integers of 8 bits."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from moekit.banks import check_recompute, is_transposed, stacked, weight_names
from moekit.changed_class import ChangedClass
from moekit.checks import check_floating, check_rank, check_same_device, check_width
from moekit.experts.base import check_plan_experts
from moekit.experts.ffn import FFNExperts
from moekit.experts.products import Products, ffn_by_products
from moekit.plan import DispatchPlan
from moekit_kernels.grouped_gemm_int8 import grouped_gemm_int8, quantize
from moekit_kernels.impl import Impl


class Int8Product(NamedTuple):
    """A product by stacked integers.

    Attributes:
        values: ``(E, out, in)``.
        scale: ``(E, out)``.
        bias: ``(E, out)``.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor, offsets: Tensor, impl: Impl) -> Tensor:
        """See :class:`~moekit.experts.products.RowProduct`."""
        return grouped_gemm_int8(rows, self.values, self.scale, offsets, self.bias, impl=impl)


class Int8(ChangedClass):
    """What a quantised bank is, before the class that it had.

    The matrices are int8 buffers of the names that they had, each beside its scales, ``NAME_scale``.

    Attributes:
        float_dtype: The dtype that the weights had: that of rows in models of ``transformers``, and of adapters.
    """

    float_dtype: torch.dtype

    def forward(self, *inputs: Any) -> Tensor:
        """Computes what the bank did, by integers."""
        bank, products = cast(Any, self), int8_products(self)
        if isinstance(self, FFNExperts):
            x, plan, gates = inputs
            bank._check_input(x, plan)
            return ffn_by_products(x, gates, plan, products, self.activation, self.impl)
        from moekit.interop.transformers._experts import experts_forward_by

        num_experts = stacked(self).up_proj.shape[0]
        return experts_forward_by(self, cast(Any, inputs), products, num_experts=num_experts, dtype=self.float_dtype)

    def reset_parameters(self) -> None:
        """Sets all weights to zero: integers are loaded, not drawn."""
        for name in weight_names(self):
            self.get_buffer(name).zero_()
            self.get_buffer(scale_name(name)).fill_(1)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return ", ".join(filter(None, (cast(str, cast(Any, super()).extra_repr()), "bits=8")))

    def _check_input(self, x: Tensor, plan: DispatchPlan) -> None:
        bank = cast(FFNExperts, self)
        check_floating("x", x)
        check_rank("x", x, 2, "T, D")
        check_width("x", x, bank.dim)
        check_same_device("x", x, "the experts' weights", bank.up_proj)
        check_plan_experts(plan, bank.num_experts)

    def _check_settings(self) -> None:
        cast(Any, super())._check_settings()
        check_recompute("recompute", cast(FFNExperts, self).recompute)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8":
        """Keeps scales in float32, and casts the dtype that stands for the weights."""
        before = [self.get_buffer(scale_name(name)) for name in weight_names(self)]
        super()._apply(fn, recurse)
        for name, scale in zip(weight_names(self), before, strict=True):
            own = self.get_buffer(scale_name(name))
            if own.dtype != torch.float32:
                setattr(self, scale_name(name), scale.to(own.device))
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype)).dtype
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Loads integers; floating weights are quantised on the way, one matrix after the other."""
        state, prefix = cast(dict[str, Tensor], args[0]), cast(str, args[1])
        for name in weight_names(self):
            weight = state.get(prefix + name)
            if weight is not None and weight.is_floating_point():
                state[prefix + name], state[prefix + scale_name(name)] = quantized(self, weight)
        super()._load_from_state_dict(*args, **kwargs)


def scale_name(name: str) -> str:
    """Returns the name of the scales of a matrix."""
    return f"{name}_scale"


def quantized(bank: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns integers in the layout of a bank's matrix, and scales ``(E, out)``."""
    if not is_transposed(bank):
        return quantize(weight)
    values, scale = quantize(weight.mT)
    return values.mT, scale


def int8_products(bank: nn.Module) -> Products:
    """Returns the products of a quantised bank."""
    weights = stacked(bank)
    up_scale, down_scale = (bank.get_buffer(scale_name(name)) for name in weight_names(bank))
    return Products(
        Int8Product(weights.up_proj, up_scale, weights.up_bias),
        Int8Product(weights.down_proj, down_scale, weights.down_bias),
    )
