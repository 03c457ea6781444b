"""The adapters of a bank of experts: one pair of thin matrices per expert and product.

Letters: N rows of a plan, E experts, r rank, D and D2 widths of input and output, F hidden width, F1 columns of the
pre-activation (F, or 2F for a gated activation).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.checks import check_positive
from moekit.experts.products import Products, RowProduct
from moekit.settings import SettingsModule
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.impl import Impl

PRODUCTS = ("up", "down")


class Shapes(NamedTuple):
    """Sizes of a bank's two products.

    Attributes:
        up: ``(E, F1, D)``.
        down: ``(E, D2, F)``.
    """

    up: tuple[int, int, int]
    down: tuple[int, int, int]


class ExpertsLoRA(SettingsModule):
    """Low-rank adapters of the experts of one bank, in its attribute ``lora``.

    Each expert ``e`` computes ``W_e x + scaling * B_e (A_e x)`` by grouped GEMMs; ``W + scaling * B A`` is never made.
    ``A`` starts uniform in ``±1 / sqrt(in)``, as ``nn.Linear`` does, and ``B`` at zero, so that experts first
    compute what they did.

    Args:
        shapes: Of the bank's products.
        rank: ``r``.
        alpha: The scaling is ``alpha / rank``.
        rank_stabilized: Whether it is ``alpha / sqrt(rank)`` (rsLoRA, https://arxiv.org/abs/2312.03732).
        dropout: Share of the numbers that ``A`` reads that are set to zero in training. May be set later.
        products: Which of ``"up"`` and ``"down"`` are adapted.
        device: Device of the parameters.
        dtype: Dtype of the parameters; products are taken in that of the rows.

    Attributes:
        up_a: ``(E, r, D)``.
        up_b: ``(E, F1, r)``.
        down_a: ``(E, r, F)``.
        down_b: ``(E, D2, r)``.
        merged: Whether the sums are in the bank's weights; then it does not call the adapters.
        enabled: Whether the bank calls the adapters.

    Reference:
        Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685.
    """

    up_a: nn.Parameter | None
    up_b: nn.Parameter | None
    down_a: nn.Parameter | None
    down_b: nn.Parameter | None
    stored_scaling: Tensor
    _checked_settings = frozenset({"dropout"})

    def __init__(
        self,
        shapes: Shapes,
        rank: int,
        *,
        alpha: float,
        rank_stabilized: bool,
        dropout: float,
        products: tuple[str, ...],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_positive("rank", rank)
        self.rank = rank
        self.scaling = float(alpha / math.sqrt(rank) if rank_stabilized else alpha / rank)
        self.dropout = dropout
        self.merged = False
        self.enabled = True
        self._check_settings()
        for name, (num_experts, rows, columns) in zip(PRODUCTS, shapes, strict=True):
            a = b = None
            if name in products:
                a = nn.Parameter(torch.empty(num_experts, rank, columns, device=device, dtype=dtype))
                b = nn.Parameter(torch.empty(num_experts, rows, rank, device=device, dtype=dtype))
            self.register_parameter(f"{name}_a", a)
            self.register_parameter(f"{name}_b", b)
        # So that adapters that were trained with another scaling are not misread when they are loaded.
        self.register_buffer("stored_scaling", torch.tensor(self.scaling, dtype=torch.float32, device=device))
        self.reset_parameters()
        self._make_read_only("rank")

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws ``A`` anew and sets ``B`` to zero."""
        for name in PRODUCTS:
            a, b = self.matrices(name)
            if a is not None and b is not None:
                bound = 1 / math.sqrt(a.shape[-1])
                with torch.no_grad():
                    a.uniform_(-bound, bound, generator=generator)
                    b.zero_()
        self.stored_scaling.fill_(self.scaling)

    def matrices(self, product: str) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """Returns ``A`` and ``B`` of ``"up"`` or ``"down"``; None where it is not adapted."""
        return getattr(self, f"{product}_a"), getattr(self, f"{product}_b")

    @property
    def is_active(self) -> bool:
        """Whether the bank calls the adapters."""
        return self.enabled and not self.merged

    def adapted(self, products: Products) -> Products:
        """Returns the products of the bank with what the adapters add."""
        return Products(*(self._adapted(name, each) for name, each in zip(PRODUCTS, products, strict=True)))

    def update(self, product: str, expert: int) -> Tensor | None:
        """Returns ``scaling * B A`` of one expert, in float32 or wider; None where the product is not adapted."""
        a, b = self.matrices(product)
        if a is None or b is None:
            return None
        dtype = torch.promote_types(a.dtype, torch.float32)
        return (b[expert].to(dtype) @ a[expert].to(dtype)).mul_(self.scaling)

    def extra_repr(self) -> str:
        """Shows the settings."""
        products = tuple(name for name in PRODUCTS if self.matrices(name)[0] is not None)
        return (
            f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout}, products={products}"
            f"{', merged=True' if self.merged else ''}"
        )

    def _adapted(self, name: str, product: RowProduct) -> RowProduct:
        a, b = self.matrices(name)
        if a is None or b is None:
            return product

        def compute(rows: Tensor, offsets: Tensor, impl: Impl) -> Tensor:
            inputs = F.dropout(rows, self.dropout) if self.training and self.dropout else rows
            low_Nr = grouped_gemm(inputs, a.to(rows.dtype), offsets, impl=impl)
            added = grouped_gemm(low_Nr * self.scaling, b.to(rows.dtype), offsets, impl=impl)
            return product(rows, offsets, impl) + added

        return compute

    def _check_settings(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExpertsLoRA":
        """Keeps the scaling in float32: half precision would round it."""
        before = self.stored_scaling
        super()._apply(fn, recurse)
        if self.stored_scaling.dtype != before.dtype:
            self.stored_scaling = before.to(self.stored_scaling.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Saves nothing while merged: the bank's weights hold the adapters then, and would get them twice."""
        if not self.merged:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refuses to load while merged, and adapters of another scaling."""
        refusal = self._why_not_loaded(*args[:2])
        if refusal is None:
            super()._load_from_state_dict(*args, **kwargs)
        else:
            cast(list[str], args[-1]).append(refusal)

    def _why_not_loaded(self, state: dict[str, Tensor], prefix: str) -> str | None:
        if self.merged:
            return f"{prefix[:-1]} is merged, so that its experts cannot be loaded: call unmerge_lora_ first."
        stored = state.get(f"{prefix}stored_scaling")
        if stored is None or stored.is_meta or self.has_scaling(float(stored)):
            return None
        return (
            f"{prefix[:-1]} has the scaling {self.scaling:g}, but is loaded from adapters of scaling "
            f"{float(stored):g}: add them with the same rank, alpha and rank_stabilized."
        )

    def has_scaling(self, scaling: float) -> bool:
        """Returns whether this is the scaling of the adapters, but for rounding to float32."""
        return math.isclose(scaling, self.scaling, rel_tol=1e-6)
