"""How several devices train one model: DDP, or FSDP2, which also shards weights, gradients and moments.

FSDP2 is torch's ``fully_shard``, applied inside Fabric's ``ModelParallelStrategy``: so the launcher, the precision,
accumulation and clipping are those of the other strategies, and the recipe decides what is a unit of sharding. With
either, experts may be divided among devices instead (:mod:`recipes.shared.expert_parallel`).
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from recipes.shared.expert_parallel import DividedExperts, ExpertParallelDDP, ExpertParallelFSDP
from recipes.shared.settings import TrainSettings

Strategy = Literal["ddp", "fsdp2"]


def launch(
    settings: TrainSettings,
    strategy: Strategy = "ddp",
    *,
    units: Callable[[nn.Module], list[nn.Module]] = lambda model: [],
    find_unused: bool = False,
) -> Fabric:
    """Starts the processes of a run; each goes on from here.

    One device needs no strategy, and has none.

    Args:
        settings: Of the training: devices, nodes, precision.
        strategy: For several devices.
        units: With ``"fsdp2"``, the parts of the model that are gathered one at a time; the rest is one more unit.
        find_unused: With ``"ddp"``, whether a step may leave weights out.

    Raises:
        ValueError: If ``strategy`` does not go with the precision, or the accelerator is not there.
    """
    if strategy == "fsdp2" and settings.precision == "16-mixed":
        raise ValueError(
            "strategy 'fsdp2' (--strategy) needs --precision bf16-mixed or 32-true, got '16-mixed': losses are not "
            "scaled for sharded gradients. Or use --strategy ddp."
        )
    chosen: Any = "auto"
    if settings.devices * settings.nodes > 1:
        chosen = _ddp(settings, find_unused) if strategy == "ddp" else _fsdp2(settings, units)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,
            strategy=chosen,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"accelerator {settings.accelerator!r} (--accelerator) with devices {settings.devices} (--devices) cannot "
            f"be used: {error}"
        ) from error
    fabric.launch()
    return fabric


def _ddp(settings: TrainSettings, find_unused: bool) -> DDPStrategy:
    if settings.expert_parallel == 1:
        return DDPStrategy(find_unused_parameters=find_unused)
    return ExpertParallelDDP(settings.expert_parallel, find_unused_parameters=find_unused)


def _fsdp2(settings: TrainSettings, units: Callable[[nn.Module], list[nn.Module]]) -> ModelParallelStrategy:
    # Nothing here changes an output of the model in place, which is what this warns of.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")

    def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
        banks: list[nn.Module] = []
        if size > 1:
            strategy.divided = DividedExperts(model, size, mesh.device_type)
            banks = list(strategy.divided.banks.values())
            for bank in banks:
                fully_shard(bank, mesh=strategy.divided.mesh["dp"])
        for unit in [*units(model), model]:
            if unit not in banks:
                fully_shard(unit, mesh=mesh["data_parallel"])
        return model

    size, ranks = settings.expert_parallel, settings.devices * settings.nodes
    kind = ModelParallelStrategy if size == 1 else ExpertParallelFSDP
    strategy: Any = kind(shard, data_parallel_size=ranks, tensor_parallel_size=1)
    return strategy
