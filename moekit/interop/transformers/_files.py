"""Models with layers of moekit in the files of ``transformers``, whole or divided among ranks."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit.distributed.placed import placed_banks
from moekit.distributed.undivided import undivided
from moekit.interop.hub.chunks import Reader, together, write_together
from moekit.interop.hub.divided import give_memory
from moekit.interop.transformers._regions import regions_of, tied_in_files


def save(model: nn.Module, like: Any, folder: Path, max_shard_size: int | str, group: dist.ProcessGroup | None) -> None:
    """See :func:`moekit.interop.transformers.save_transformers`."""
    whole = undivided(model)
    regions = regions_of(cast(dict[str, Tensor], model.state_dict()), whole, like)
    with together(group):
        folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, regions.tensors, regions.views, max_shard_size, group)
    with together(group) as first:
        if first:
            dtype = next((each.dtype for each in whole.parameters() if each.is_floating_point()), None)
            config = copy.deepcopy(like.config)
            config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(like).__name__]
            config.save_pretrained(folder)
            if like.can_generate():
                like.generation_config.save_pretrained(folder)


@torch.no_grad()
def load(model: nn.Module, like: Any, folder: Path, device: torch.device) -> None:
    """See :func:`moekit.interop.transformers.load_transformers_`."""
    give_memory(model, tied_in_files(like), device)
    state = cast(dict[str, Tensor], model.state_dict())
    regions = regions_of(state, undivided(model), like)
    with Reader(folder) as reader:
        shapes = reader.shapes()
        sizes = {name: each.shape for name, each in regions.tensors.items()}
        theirs = {name: each.shape for name, each in shapes.items()}
        different = sorted({name for name, _ in sizes.items() ^ theirs.items()})
        if different:
            shown = f"{', '.join(different[:5])}{f' and {len(different) - 5} more' if len(different) > 5 else ''}"
            raise ValueError(f"{folder} must hold the tensors that transformers saves of like, not so: {shown}.")
        for chunk, view in regions.views.items():
            view.copy_(reader.read(chunk))
    if placed_banks(model):
        model.load_state_dict(state)  # theirs is a copy, in another order
