"""Sums over the steps of an epoch, kept on the device until the epoch ends."""

from collections.abc import Mapping

import torch
from lightning.fabric import Fabric
from torch import Tensor

Sums = Mapping[str, Tensor]
"""Sums by name, each a scalar or a vector, on the device."""


class DeviceSums:
    """Adds named values up without waiting for the device.

    The sums are float64, in which counts below 2^53 are exact, or float32 on Apple's GPUs, which have no float64.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, values: Sums) -> None:
        """Adds values to the sums of their names.

        Args:
            values: Scalars or vectors; a name has the same shape in every call.
        """
        for name, value in values.items():
            value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            self.values[name] = self.values[name] + value if name in self.values else value

    def over_ranks(self, fabric: Fabric) -> dict[str, Tensor]:
        """Returns the sums over all ranks, on the CPU and in float64; waits for the device.

        Args:
            fabric: Of the run; every rank must have added values of the same names and shapes.
        """
        if not self.values:
            return {}
        packed = torch.cat([value.reshape(-1) for value in self.values.values()])
        if fabric.world_size > 1:
            packed = fabric.all_reduce(packed, reduce_op="sum")
        parts = packed.cpu().double().split([value.numel() for value in self.values.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self.values.items(), parts, strict=True)}
