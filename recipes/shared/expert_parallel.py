"""Experts divided among the devices of a training, and what files hold of them: the same as of any other run.

Devices that hold the same experts are ``dp``, those that divide them ``ep``, the inner dimension of the mesh: devices
whose ranks follow one another, such as those of a node.
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from moekit import SparseMoE
from moekit.distributed import average_gradients_, clip_grad_norm_, expert_parallel_
from recipes.shared.settings import TrainSettings

Key = TypeVar("Key", bound=Hashable)


def check_expert_parallel(settings: TrainSettings, num_experts: int | None) -> None:
    """Refuses a number of devices that experts cannot be divided among.

    Args:
        settings: Of the training, with the devices and nodes that were started.
        num_experts: Of each sparse layer of the model; ``None`` without any.

    Raises:
        ValueError: Naming the options.
    """
    size, processes = settings.expert_parallel, settings.devices * settings.nodes
    if size == 1:
        return
    if num_experts is None:
        raise ValueError(
            f"expert_parallel (--expert-parallel) divides experts, of which this model has none, got {size}: leave it "
            "out."
        )
    if processes % size:
        raise ValueError(
            f"expert_parallel (--expert-parallel) must divide the number of processes, devices (--devices) x nodes "
            f"(--nodes) = {processes}, got {size}."
        )
    most = -(-num_experts // size)
    if most * (size - 1) >= num_experts:
        raise ValueError(
            f"expert_parallel (--expert-parallel) must leave an expert to every process: {num_experts} experts in "
            f"chunks of {most} fill fewer than {size}. Use a smaller number, or another number of experts."
        )
    if settings.precision == "16-mixed":
        raise ValueError(
            f"expert_parallel (--expert-parallel) {size} needs --precision bf16-mixed or 32-true, got '16-mixed': an "
            "overflow in the experts of one process would skip a step there only."
        )


def optimiser_options(settings: TrainSettings) -> dict[str, Any]:
    """Returns options of torch's optimisers: on a GPU one loop for all takes no tensors of several meshes."""
    return {"foreach": False} if settings.expert_parallel > 1 else {}


class DividedExperts:
    """The experts of a model, of which each process holds a share.

    Args:
        model: Whole, with its parameters on the device that it trains on; its experts are divided in place.
        size: Processes that divide them; it divides the number of all.
        device_type: Such as ``"cuda"``.
    """

    def __init__(self, model: nn.Module, size: int, device_type: str) -> None:
        self.device_type = device_type
        self.mesh: DeviceMesh = init_device_mesh(
            device_type, (dist.get_world_size() // size, size), mesh_dim_names=("dp", "ep")
        )
        self.parameter_names = [name for name, _ in model.named_parameters()]
        self.state_names = list(model.state_dict())
        layers = {name: each for name, each in model.named_modules() if isinstance(each, SparseMoE)}
        for layer in layers.values():
            layer.to(device_type)  # FSDP2 moves a model only when it shards it
        expert_parallel_(model, self.mesh["ep"])
        self.banks = {f"{name}.experts" if name else "experts": layer.experts for name, layer in layers.items()}

    def names(self) -> list[str]:
        """Returns the names of the parameters and buffers of this process's experts."""
        return [
            f"{prefix}.{name}"
            for prefix, bank in self.banks.items()
            for name, _ in (*bank.named_parameters(), *bank.named_buffers())
        ]

    def average_over_copies_(self) -> None:
        """Averages gradients over the processes that hold the same experts, and gives them the first one's buffers.

        DDP does so for the rest of the model. Gradients of experts are those of the average over ``ep`` already.
        """
        if self.mesh["dp"].size() == 1:
            return
        group = self.mesh["dp"].get_group()
        for bank in self.banks.values():
            average_gradients_(bank, data_group=group)
            for buffer in bank.buffers():
                dist.broadcast(buffer, src=dist.get_global_rank(group, 0), group=group)

    def whole_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of the whole model; every process must call it, and the first one has all of it.

        Args:
            state: Of this process, with whole tensors: modules of a list are only where they are held.
        """
        everything = _from_all(state, self.device_type)
        return {name: everything[name] for name in self.state_names if name in everything}

    def whole_moments(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the state that an optimiser over the whole model has; as :meth:`whole_weights`.

        Args:
            state: Of this process's optimiser, whose groups have ``names``.
        """
        numbers = _numbers(state)
        moments = {
            (name, key): value
            for name, number in numbers.items()
            for key, value in state["state"].get(number, {}).items()
        }
        groups: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(groups, [group["names"] for group in state["param_groups"]])
        place = {name: number for number, name in enumerate(self.parameter_names)}
        whole = _Numbered()
        by_name: dict[str, dict[str, Tensor]] = {}
        for (name, key), value in _from_all(moments, self.device_type).items():
            by_name.setdefault(name, {})[key] = value
        for group, names in zip(state["param_groups"], zip(*groups, strict=True), strict=True):
            whole.add(group, sorted({name for some in names for name in some}, key=place.__getitem__), by_name)
        return {**state, "state": whole.state, "param_groups": whole.groups}

    def own_moments(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Returns what a whole state holds of this process's parameters.

        Args:
            state: Of an optimiser over the whole model.
            optimizer: Of this process.
        """
        own = {name for group in optimizer.param_groups for name in group["names"]}
        elsewhere = set(self.parameter_names) - own
        if not all("names" in group for group in state["param_groups"]):
            return state  # of an older version, which is refused for it
        by_name = {name: state["state"][number] for name, number in _numbers(state).items() if number in state["state"]}
        kept = _Numbered()
        for group in state["param_groups"]:
            kept.add(group, [name for name in group["names"] if name not in elsewhere], by_name)
        return {**state, "state": kept.state, "param_groups": kept.groups}


class ExpertParallelDDP(DDPStrategy):
    """DDP for a model whose experts are divided: it leaves them out.

    Args:
        size: Processes that divide them.
        options: Of :class:`~torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.divided: DividedExperts | None = None

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Divides the experts, and wraps the model."""
        self.divided = DividedExperts(module, self.size, self.root_device.type)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, self.divided.names())
        return super().setup_module(module)

    def clip_gradients_norm(self, module: nn.Module, *_: Any, max_norm: float, **options: Any) -> Tensor:
        """Limits the norm of all gradients together, wherever they are."""
        return _clip(module, max_norm, options)


class ExpertParallelFSDP(ModelParallelStrategy):
    """FSDP2 for a model whose experts are divided; what it is made with divides them and sets :attr:`divided`."""

    divided: DividedExperts | None = None

    def clip_gradients_norm(self, module: nn.Module, *_: Any, max_norm: float, **options: Any) -> Tensor:
        """Limits the norm of all gradients together, wherever they are."""
        return _clip(module, max_norm, options)


def divided_experts(fabric: Fabric) -> DividedExperts | None:
    """Returns the divided experts of a run that was set up; ``None`` where every process has all."""
    strategy = fabric.strategy
    return strategy.divided if isinstance(strategy, ExpertParallelDDP | ExpertParallelFSDP) else None


def average_over_copies_(fabric: Fabric) -> None:
    """Does for divided experts what DDP leaves out; nothing under any other strategy."""
    if isinstance(fabric.strategy, ExpertParallelDDP) and fabric.strategy.divided is not None:
        fabric.strategy.divided.average_over_copies_()


def _clip(module: nn.Module, max_norm: float, options: Mapping[str, Any]) -> Tensor:
    # In these precisions there is no scale to take out of the gradients first.
    return clip_grad_norm_(
        module, max_norm, options.get("norm_type", 2.0), error_if_nonfinite=options.get("error_if_nonfinite", True)
    )


class _Numbered:
    """State of an optimiser, whose parameters are numbered through all groups."""

    def __init__(self) -> None:
        self.state: dict[int, Any] = {}
        self.groups: list[dict[str, Any]] = []

    def add(self, group: Mapping[str, Any], names: list[str], moments: Mapping[str, Any]) -> None:
        """Adds a group with other parameters."""
        first = sum(len(each["names"]) for each in self.groups)
        numbers = range(first, first + len(names))
        self.groups.append({**group, "names": names, "params": list(numbers)})
        self.state.update({number: moments[name] for number, name in zip(numbers, names, strict=True) if name in moments})


def _numbers(state: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of each parameter."""
    return {
        name: number
        for group in state["param_groups"]
        for name, number in zip(group["names"], group["params"], strict=True)
    }


def _from_all(tensors: Mapping[Key, Tensor], device_type: str) -> dict[Key, Tensor]:
    """Adds the tensors that only other processes have, one at a time, on the CPU of the first process."""
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()})
    everything = dict(tensors)
    for rank, table in enumerate(shapes):
        # Those of an earlier rank have been sent, and what all have need not be.
        sent = [key for key in table if not any(key in earlier for earlier in shapes[:rank])]
        for key in sent:
            if all(key in other for other in shapes):
                continue
            shape, dtype = table[key]
            own = tensors[key].detach() if key in tensors else torch.empty(shape, dtype=dtype)
            value = own.to(device_type)
            dist.broadcast(value, src=rank)
            if key not in tensors and dist.get_rank() == 0:
                everything[key] = value.cpu()
    return everything
