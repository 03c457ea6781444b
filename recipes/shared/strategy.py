"""How several devices train one model: DDP, or FSDP2, which also shards weights, gradients and moments.

FSDP2 is torch's ``fully_shard``, applied inside Fabric's ``ModelParallelStrategy``: so the launcher, the precision,
accumulation and clipping are those of the other strategies, and the recipe decides what is a unit of sharding.
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
        chosen = DDPStrategy(find_unused_parameters=find_unused) if strategy == "ddp" else _fsdp2(settings, units)
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


def _fsdp2(settings: TrainSettings, units: Callable[[nn.Module], list[nn.Module]]) -> ModelParallelStrategy:
    # Nothing here changes an output of the model in place, which is what this warns of.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")

    def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
        for unit in [*units(model), model]:
            fully_shard(unit, mesh=mesh["data_parallel"])
        return model

    ranks = settings.devices * settings.nodes
    return ModelParallelStrategy(shard, data_parallel_size=ranks, tensor_parallel_size=1)
