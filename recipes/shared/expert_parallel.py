"""Experts divided among the devices of a training.

Devices that hold the same experts are ``dp``, those that divide them ``ep``, the inner dimension of the mesh: devices
whose ranks follow one another, such as those of a node.
"""

from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from moekit import SparseMoE
from moekit.distributed import average_gradients_, clip_grad_norm_, expert_parallel_
from recipes.shared.settings import TrainSettings


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

    Attributes:
        mesh: Dimensions ``dp`` and ``ep``.
        parameter_names: Those of the whole model, in order.
        state_names: The names in its state dict.
        banks: The divided experts by name.
    """

    def __init__(self, model: nn.Module, size: int, device_type: str) -> None:
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


class DividesExperts:
    """What strategies for divided experts have in common.

    Attributes:
        divided: The experts of the model that was set up last.
    """

    divided: DividedExperts | None = None

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Limits the norm of all gradients together, wherever they are; none of them has a scale in its precision."""
        return clip_grad_norm_(module, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite)


class ExpertParallelDDP(DividesExperts, DDPStrategy):
    """DDP for a model whose experts are divided: it leaves them out.

    Args:
        size: Processes that divide them.
        options: Of :class:`~torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Divides the experts, and wraps the model."""
        self.divided = DividedExperts(module, self.size, self.root_device.type)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, self.divided.names())
        return super().setup_module(module)


class ExpertParallelFSDP(DividesExperts, ModelParallelStrategy):
    """FSDP2 for a model whose experts are divided; what it is made with divides them and sets :attr:`divided`."""


def divided_experts(fabric: Fabric) -> DividedExperts | None:
    """Returns the divided experts of a run that was set up; ``None`` where every process has all."""
    return fabric.strategy.divided if isinstance(fabric.strategy, DividesExperts) else None


def average_over_copies_(fabric: Fabric) -> None:
    """Does for divided experts what DDP leaves out; nothing under any other strategy."""
    if isinstance(fabric.strategy, ExpertParallelDDP) and fabric.strategy.divided is not None:
        fabric.strategy.divided.average_over_copies_()
