"""Experts that are any modules: of different size or kind, without computation, or for whole samples."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_positive
from moekit.experts.base import Experts, check_plan
from moekit.plan import DispatchPlan, combine, dispatch
from moekit_kernels.transforms import is_traced


class ZeroExpert(nn.Module):
    """Returns zeros: a *null* expert, by which a token can skip the layer (``nn.Identity`` copies it instead).

    MoE++, https://arxiv.org/abs/2410.07348.
    """

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns zeros of the shape and dtype of ``x``, without a gradient."""
        return torch.zeros_like(x)


class ModuleExperts(Experts):
    """A bank of experts from a list of modules, each ``(n, *token) -> (n, *out)`` with the same ``out``.

    A module is called on the rows of its own tokens only, once per call, and not at all without any (its parameters
    then have no gradient: with DDP set ``find_unused_parameters``). The number of rows is
    read on the host. Under ``torch.compile``, ``torch.export`` and ``make_fx``, where it cannot be, every module
    runs on ``N`` rows and its own are selected: right for modules that treat rows independently, at
    ``E`` times the cost. In place of other rows it then gets copies of its first own row, or, without one, positive
    rows that are not constant: never rows, such as zeros, at which a norm or a logarithm has a NaN gradient.

    Whatever stands in ``experts`` is called, so a wrapper may replace a module.

    Args:
        modules: The experts.
        token_ndim: Trailing dimensions of the input that make one token: 1 for feature vectors
            ``(D,)``, 3 for convolutions over samples ``(C, H, W)``.
        out_shape: Shape of the output for one token; that of a token by default. Needed only where it
            differs, for calls in which no expert has a token.

    Raises:
        ValueError: If the list is empty or holds something else than modules, or ``token_ndim`` is below 1.

    Example:
        >>> experts = ModuleExperts([nn.Linear(8, 8), nn.Identity(), ZeroExpert()])
        >>> experts.num_experts
        3
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, token_ndim: int = 1, out_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        experts = list(modules)
        if not experts:
            raise ValueError("modules must hold at least one expert, got none.")
        for index, expert in enumerate(experts):
            if not isinstance(expert, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"modules[{index}] must be an nn.Module, got a {type(expert).__name__}.")
        check_positive("token_ndim", token_ndim)
        self.experts = nn.ModuleList(experts)
        self.num_experts = len(experts)
        self.token_ndim = token_ndim
        self.out_shape = None if out_shape is None else tuple(out_shape)
        self._make_read_only("num_experts", "token_ndim", "takes_pyramid")

    def forward(
        self, x: Float[Tensor, "T *D"], plan: DispatchPlan, gates: Float[Tensor, "A B"]
    ) -> Float[Tensor, "T *D2"]:
        """Computes the gate-weighted sum of every token's experts.

        Args:
            x: Tokens ``(T, *token)`` of ``token_ndim`` dimensions each.
            plan: Which rows belong to which expert.
            gates: Weights, whose flat index is the slot.

        Returns:
            One output per token, ``(T, *out)``; zero for a token without an expert.

        Raises:
            ValueError: If ``x``, ``plan`` and ``gates`` do not fit each other, two experts give outputs of different
                shapes, one gives another than ``out_shape``, or experts were added or removed after construction.
        """
        if len(self.experts) != len(self.local_experts):
            raise ValueError(
                f"experts must be the {len(self.local_experts)} that ModuleExperts was built with (or wrappers of "
                f"them), got {len(self.experts)}: build another ModuleExperts, and a router for it."
            )
        if x.ndim != 1 + self.token_ndim:
            raise ValueError(f"x must have {1 + self.token_ndim} dimensions, got shape {tuple(x.shape)}.")
        check_plan(x, plan, gates, len(self.local_experts))
        rows = dispatch(x, plan)
        if is_traced():
            return combine(self._all_rows(rows, plan), plan, gates)
        return combine(self._own_rows(rows, plan), plan, gates)

    def _own_rows(self, rows: Tensor, plan: DispatchPlan) -> Tensor:
        bounds = cast(list[int], plan.offsets.tolist())
        parts: list[Tensor] = []
        for expert, (start, end) in zip(self.experts, pairwise(bounds), strict=True):
            if end > start:
                parts.append(expert(rows[start:end]))
                self._check_output(parts[-1], parts[0], end - start)
        default = rows.shape[1:] if self.out_shape is None else self.out_shape
        out_shape = parts[0].shape[1:] if parts else default
        dtype = parts[0].dtype if parts else rows.dtype
        parts.append(rows.new_zeros(rows.shape[0] - bounds[-1], *out_shape, dtype=dtype))
        return torch.cat(parts)

    def _all_rows(self, rows: Tensor, plan: DispatchPlan) -> Tensor:
        index = torch.arange(rows.shape[0], device=rows.device)
        out: Tensor | None = None
        for number, expert in enumerate(self.experts):
            start, end = plan.offsets[number], plan.offsets[number + 1]
            own = (index >= start) & (index < end)
            y = expert(_own_or_similar(rows, index, own, start, end))
            self._check_output(y, y if out is None else out, rows.shape[0])
            y = torch.where(own.view(-1, *(1,) * (y.ndim - 1)), y, 0)
            out = y if out is None else out + y
        assert out is not None
        return out

    def _check_output(self, output: Tensor, first: Tensor, rows: int) -> None:
        out_shape = tuple(first.shape[1:]) if self.out_shape is None else self.out_shape
        if output.shape[0] != rows or tuple(output.shape[1:]) != out_shape:
            raise ValueError(
                f"all experts must give outputs of one shape: expected {(rows, *out_shape)}, got {tuple(output.shape)}."
            )


def _own_or_similar(rows: Tensor, index: Tensor, own: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns the expert's own rows in their places, and elsewhere rows with finite gradients.

    The outputs of the latter are not selected, but a gradient of zero times an infinite derivative is NaN.
    """
    copies = rows.index_select(0, torch.where(own, index, start.clamp(max=rows.shape[0] - 1)))
    size = math.prod(rows.shape[1:])
    ramp = 1 + torch.arange(size, device=rows.device).to(rows.dtype) / size
    return torch.where((start < end).view((1,) * rows.ndim), copies, ramp.view(rows.shape[1:]))
