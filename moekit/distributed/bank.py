"""Banks of experts of which each rank holds a share.

A bank stays the module that it is, with the names of its parameters; its class changes to one that exchanges rows with
the other ranks around what the bank computed before.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.changed_class import ChangedClass, changed_class
from moekit.distributed.errors import exchange_errors
from moekit.distributed.exchange import Exchange, LocalExperts, Meanwhile, Share
from moekit.experts.base import Experts, check_plan_experts
from moekit.experts.ffn import FFNExperts
from moekit.plan import DispatchPlan, check_gates, check_tokens
from moekit_kernels.moe_ffn import ExpertWeights


class ExpertParallel(ChangedClass):
    """What a bank of which each rank holds a share is, before the class that it had.

    Attributes:
        share: The experts of each rank.
        exchange: How rows get to them.
        group: All ranks that hold a share.
        gradient_factor: By which the gradients of their parameters are multiplied.
    """

    is_divided = True
    share: Share
    exchange: Exchange
    group: dist.ProcessGroup
    gradient_factor: float

    @property
    def local_experts(self) -> Sequence[int]:
        """The experts that this rank holds."""
        return self.share.local

    def forward(self, x: Any, /, plan: DispatchPlan, gates: Tensor, meanwhile: Meanwhile = None) -> Tensor:
        """Computes what the bank did, each expert on the rank that holds it.

        All ranks of the experts must call it together, and run backward through its result together. Inputs and
        parameters must have gradients on all of them, or on none. ``meanwhile`` is called once, while rows are on their
        way to their experts.
        """
        bank = cast(Experts, self)
        tokens = [x] if isinstance(x, Tensor) else list(x)
        check_plan_experts(plan, bank.num_experts)
        for each in tokens:
            check_tokens(each, plan)
        check_gates(gates, plan)
        experts = LocalExperts(
            compute=self._compute,
            trains=any(parameter.requires_grad for parameter in self.parameters()) or not _has_parameters(self),
            uses_every_row=isinstance(self, FFNExperts),
            factor=self.gradient_factor,
        )
        # Dynamo breaks its graph here: what an exchange brings is not known before.
        run: Callable[..., Tensor] = cast(Any, _run)
        return run(self, experts, tokens, plan, gates, meanwhile)

    def _compute(self, x: Any, plan: DispatchPlan, gates: Tensor) -> Tensor:
        """Computes what arrived; its dtype is that of all ranks together, which send it to each other."""
        y: Tensor = cast(Any, super()).forward(x, plan, gates)
        # One operation of all weights returns the same dtype whatever arrived; of modules some ranks may call none.
        return y if isinstance(self, FFNExperts) else y.to(_common_dtype(y.dtype, plan, self.group))

    def extra_repr(self) -> str:
        """Shows the settings, and this rank's experts."""
        return ", ".join(part for part in (cast(Any, super()).extra_repr(), self._held()) if part)

    @contextmanager
    def placed(self, plan: DispatchPlan) -> Generator[DispatchPlan]:
        """Gives, for one call, the plan of what ranks hold, in their order, from one of all experts."""
        yield plan

    def _held(self) -> str:
        local = self.share.local
        return f"experts {local.start} to {local.stop - 1} of {self.share.num_experts} on this rank"

    def _weights(self) -> ExpertWeights:
        weights: Iterable[Tensor | None] = cast(Any, super())._weights()
        return ExpertWeights(*(_local(each) for each in weights))

    def scale_weights(self, maps: Sequence[Tensor], plan: DispatchPlan) -> Tensor:
        """Raises ``ValueError``: a rank has the weights of its own experts only."""
        raise ValueError("scale_weights needs all experts on one rank: load the checkpoint into a model that has them.")

    def run_all(self, maps: Sequence[Tensor]) -> Tensor:
        """Raises ``ValueError``, as :meth:`scale_weights` does."""
        raise ValueError("run_all needs all experts on one rank: load the checkpoint into a model that has them.")


class HeldModules(nn.ModuleList):
    """Some modules of a list, under the names that they have in the whole list.

    Args:
        modules: The whole list.
        held: Indices of those to keep.
    """

    def __init__(self, modules: nn.ModuleList, held: range) -> None:
        super().__init__()
        self.held = held
        for index in held:
            self.add_module(str(index), modules[index])

    def _get_abs_string_index(self, idx: Any) -> str:
        """Returns the name of the module at a place among those that are held."""
        names: list[str] = [*self._modules]
        return names[int(idx)]


@torch.compiler.disable
def _run(
    bank: ExpertParallel,
    experts: LocalExperts,
    tokens: list[Tensor],
    plan: DispatchPlan,
    gates: Tensor,
    meanwhile: Meanwhile,
) -> Tensor:
    with bank.placed(plan) as placed:
        return bank.exchange.run(experts, tokens, placed, gates, meanwhile)


def share_bank(
    bank: Experts,
    share: Share,
    exchange: Exchange,
    group: dist.ProcessGroup,
    gradient_factor: float,
    *,
    kind: type[ExpertParallel] = ExpertParallel,
) -> None:
    """Changes a bank whose parameters or modules are already this rank's own."""
    cast(Any, bank).__class__ = changed_class(kind, type(bank))
    shared = cast(ExpertParallel, bank)
    shared.share, shared.exchange, shared.group, shared.gradient_factor = share, exchange, group, gradient_factor


def _common_dtype(dtype: torch.dtype, plan: DispatchPlan, group: dist.ProcessGroup) -> torch.dtype:
    """Returns the dtype of what the ranks computed that had any row; this one's own where none had."""
    had_rows = plan.offsets[-1:] > 0
    own = torch.where(had_rows, _DTYPES.index(dtype), -1)
    numbers = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    with exchange_errors(group):
        dist.all_gather(numbers, own, group=group)
    dtypes = [_DTYPES[number] for number in cast(list[int], torch.cat(numbers).tolist()) if number >= 0]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else dtype


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def _local(weight: Tensor | None) -> Any:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
