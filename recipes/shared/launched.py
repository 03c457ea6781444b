"""Runs that torchrun has started: how many processes there are is known from its environment."""

import os
from dataclasses import replace
from typing import Any


def with_launched_processes(config: Any) -> Any:
    """Returns the settings with the devices and nodes of torchrun, where it started this process.

    Args:
        config: A recipe's settings; ``config.train`` has ``devices`` and ``nodes``.

    Raises:
        ValueError: If the settings name another number of devices or nodes than torchrun has started.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    launched = {"devices": local, "nodes": world // local}
    for name, number in launched.items():
        own = getattr(config.train, name)
        if own not in (1, number):
            raise ValueError(
                f"{name} (--{name}) must be left out or {number}, as torchrun has started, got {own}: torchrun's "
                "--nproc-per-node and --nnodes decide."
            )
    return replace(config, train=replace(config.train, **launched))
