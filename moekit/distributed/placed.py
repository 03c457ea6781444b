"""Banks whose experts lie on ranks by a placement, some of them on several.

Parameters have one row for each slot. State dicts have one for each expert, in their order, like those of every other
division: who writes or reads one sees no placement.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from moekit.distributed.bank import ExpertParallel
from moekit.distributed.placement import ExpertPlacement
from moekit.distributed.rows import Grid, Layout, first_rows, grid_of, logical_layout, move_rows, placed_layout
from moekit.distributed.slots import Slots
from moekit.experts.base import Experts
from moekit.experts.ffn import FFNExperts
from moekit.plan import DispatchPlan
from moekit_kernels.moe_ffn import ExpertWeights

Placements = ExpertPlacement | Mapping[str, ExpertPlacement]
"""One for all layers, or one for each by its name."""


class PlacedExperts(ExpertParallel):
    """What a bank with a placement is, before the class that it had.

    Attributes:
        slots: The placement, as this rank uses it.
        layer_name: Of its layer in the model that was divided, whatever wraps it later.
    """

    slots: Slots
    layer_name: str
    _shared_weights: list[ExpertWeights] | None = None

    @property
    def placement(self) -> ExpertPlacement:
        """Which experts each rank holds."""
        return self.slots.placement

    @property
    def local_experts(self) -> Sequence[int]:
        """The experts that this rank holds, in the order of its slots."""
        return self.placement.experts_of_rank[self.slots.rank]

    def reset_parameters(self) -> None:
        """Draws the weights anew; replicas get those of the first one."""
        cast(Any, super()).reset_parameters()
        for parameter in self.parameters():
            self.unify_(parameter)

    @contextmanager
    def placed(self, plan: DispatchPlan) -> Generator[DispatchPlan]:
        """Gives, for one call, the plan of slots from one of experts.

        All micro-batches of the call share their weights, so that gradients of replicas are exchanged once.
        """
        self._shared_weights = []
        try:
            yield self.slots.placed(plan)
        finally:
            self._shared_weights = None

    def layout(self, tensor: DTensor) -> tuple[Grid, Layout]:
        """Returns the ranks that divide the rows of a parameter, or of what has its shape, and which expert each is."""
        grid = grid_of(tensor, self.group)
        return grid, placed_layout(self.placement, grid.size)

    def first_rows(self, parameter: DTensor) -> list[int]:
        """Returns this rank's rows of a parameter that no rank before it holds too."""
        grid, layout = self.layout(parameter)
        return first_rows(layout, grid.place)

    def unify_(self, tensor: Tensor) -> None:
        """Copies the row of the first replica of each expert to the others, in place."""
        if isinstance(tensor, DTensor) and not tensor.is_meta:
            grid, layout = self.layout(tensor)
            self._copy(tensor, lambda rows: move_rows(rows, layout, layout, grid))

    def place_(self, tensors: Sequence[Tensor], like: DTensor, placement: ExpertPlacement) -> None:
        """Moves the rows of tensors to where another placement has their experts, in place.

        Args:
            tensors: A parameter, its gradient, states of an optimizer, with the rows of ``like``.
            like: The parameter.
            placement: With as many slots.
        """
        grid, before = self.layout(like)
        after = placed_layout(placement, grid.size)
        for tensor in tensors:
            self._copy(tensor, lambda rows: move_rows(rows, before, after, grid))

    def to_logical(self, tensor: DTensor) -> DTensor:
        """Returns a tensor of one row for each expert, in their order, from one of a row for each slot."""
        grid, layout = self.layout(tensor)
        return self._converted(tensor, grid, layout, self._logical(grid), self._num_experts)

    def to_slots(self, tensor: DTensor) -> DTensor:
        """Returns a tensor of one row for each slot from one of a row for each expert, in their order.

        Raises:
            ValueError: If it has another number of rows.
        """
        if tensor.shape[0] != self._num_experts:
            raise ValueError(f"tensor must have a row for each of {self._num_experts} experts, got {tensor.shape[0]}.")
        grid, layout = self.layout(tensor)
        return self._converted(tensor, grid, self._logical(grid), layout, self.placement.num_slots)

    def _held(self) -> str:
        return f"experts {', '.join(map(str, self.local_experts))} of {self._num_experts} on this rank"

    def _weights(self) -> ExpertWeights:
        if self._shared_weights:
            return self._shared_weights[0]
        weights = super()._weights()
        given = [each for each in weights if each is not None]
        summed = iter(self.slots.with_summed_gradients(given, self.group))
        weights = ExpertWeights(*cast(Any, [None if each is None else next(summed) for each in weights]))
        if self._shared_weights is not None:
            self._shared_weights.append(weights)
        return weights

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        cast(Any, super())._save_to_state_dict(destination, prefix, keep_vars)
        for name, parameter in self._own_parameters():
            destination[prefix + name] = self.to_logical(parameter)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, _ in self._own_parameters():
            value = state_dict.get(prefix + name)
            if isinstance(value, DTensor):
                try:
                    state_dict[prefix + name] = self.to_slots(value)
                except ValueError as error:
                    error_msgs.append(f"{prefix}{name}: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def _num_experts(self) -> int:
        return self.placement.num_experts

    def _own_parameters(self) -> list[tuple[str, DTensor]]:
        named = cast(Any, self).named_parameters(recurse=False)
        return [(name, parameter) for name, parameter in named if isinstance(parameter, DTensor)]

    def _logical(self, grid: Grid) -> Layout:
        return logical_layout(self._num_experts, self.placement.num_ranks, grid.size)

    @torch.no_grad()
    def _copy(self, tensor: Tensor, moved: Callable[[Tensor], Tensor]) -> None:
        local = cast(Any, tensor).to_local() if isinstance(tensor, DTensor) else tensor
        local.copy_(moved(local))

    @torch.no_grad()
    def _converted(self, tensor: DTensor, grid: Grid, source: Layout, target: Layout, rows: int) -> DTensor:
        local = cast(Tensor, cast(Any, tensor.detach()).to_local())
        if local.is_meta:
            d, r = grid.place
            moved = local.new_empty(len(target[d][r]), *local.shape[1:])
        else:
            moved = move_rows(local, source, target, grid)
        shape = torch.Size((rows, *tensor.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            moved, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride
        )


def placed_banks(model: nn.Module) -> list[PlacedExperts]:
    """Returns the banks of a model that have a placement."""
    return [each for each in model.modules() if isinstance(each, PlacedExperts)]


def parameters_of_placed(model: nn.Module) -> list[tuple[DTensor, PlacedExperts]]:
    """Returns the parameters of placed experts, each with its bank, as optimizers know them: sharded by FSDP."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    pairs = ((each, bank) for bank in placed_banks(model) for each in cast(nn.Module, bank).parameters())
    return [(each, bank) for each, bank in pairs if isinstance(each, DTensor)]


def placements_of(placement: Placements | None, layers: Sequence[str]) -> dict[str, ExpertPlacement]:
    """Returns the placement of each layer that has one.

    Raises:
        ValueError: If one is for no layer.
    """
    if placement is None:
        return {}
    if isinstance(placement, ExpertPlacement):
        return dict.fromkeys(layers, placement)
    unknown = sorted(set(placement) - set(layers))
    if unknown:
        raise ValueError(f"placement must be of layers of the model, {list(layers)}, got {unknown}.")
    return dict(placement)


def check_placement(name: str, bank: Experts, placement: ExpertPlacement, ranks: int) -> None:
    """Raises ``ValueError`` unless a placement is of the experts of a bank that can have one, on so many ranks."""
    if not isinstance(bank, FFNExperts):
        raise ValueError(f"placement needs FFNExperts, got {type(bank).__name__} in {name!r}: leave that layer out.")
    wanted, got = (bank.num_experts, ranks), (placement.num_experts, placement.num_ranks)
    if wanted != got:
        raise ValueError(
            f"placement of {name!r} must be of {wanted[0]} experts on {wanted[1]} ranks, got one of {got[0]} on "
            f"{got[1]}."
        )


def check_agreement(placement: ExpertPlacement, group: dist.ProcessGroup) -> None:
    """Raises ``ValueError`` on all ranks if one has another placement."""
    placements: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(placements, placement.experts_of_rank, group=group)
    other = [rank for rank, each in enumerate(placements) if each != placements[0]]
    if other:
        raise ValueError(
            f"placement must be the same on all ranks, but ranks {other} of the group have another than the first: "
            "make it from loads that are summed over ranks."
        )
