"""The weights of a layer as views of the tensors of a block: written by one copy in either direction."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from moekit.interop.transformers._forms import Form
from moekit.interop.transformers._parts import PartsOfBlock, tensor_at


class Piece(NamedTuple):
    """One weight of a layer.

    Attributes:
        name: In the layer.
        sources: The block's tensors that it consists of, by name.
        views: Of these, in the layer's layout, one after another along ``dim``.
        dim: See there.
    """

    name: str
    sources: Mapping[str, Tensor]
    views: tuple[Tensor, ...]
    dim: int = 0

    @property
    def first(self) -> Tensor:
        """Its first source."""
        return next(iter(self.sources.values()))

    @property
    def requires_grad(self) -> bool:
        """Whether it is trained."""
        return self.first.requires_grad

    def check_freezing(self) -> None:
        """Raises ``ValueError`` if its sources are frozen in part."""
        flags = {name: each.requires_grad for name, each in self.sources.items()}
        if len(set(flags.values())) > 1:
            raise ValueError(
                f"block's {' and '.join(flags)} become one weight: freeze both or neither, got requires_grad "
                f"{' and '.join(map(str, flags.values()))}."
            )

    @torch.no_grad()
    def read_into(self, weight: Tensor) -> None:
        """Copies the block's tensors into the layer's weight."""
        for mine, theirs in zip(self._split(weight), self.views, strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def write_from(self, weight: Tensor) -> None:
        """Copies the layer's weight into the block's tensors."""
        for mine, theirs in zip(self._split(weight), self.views, strict=True):
            theirs.copy_(mine)

    def _split(self, weight: Tensor) -> tuple[Tensor, ...]:
        # torch has no types for it.
        split = cast(Callable[..., tuple[Tensor, ...]], weight.split)
        return split([each.shape[self.dim] for each in self.views], self.dim)


@torch.no_grad()
def pieces_of(block: nn.Module, form: Form, parts: PartsOfBlock) -> tuple[Piece, ...]:
    """Returns all weights of the layer that a block becomes."""
    computed = tensor_at(block, "experts.down_proj").shape[0] if form.experts == "identity" else None

    def piece(name: str, *paths: str, dim: int = 0) -> list[Piece]:
        sources = {path: tensor_at(block, path) for path in paths if path in parts.shapes}
        views = tuple(_view(path, each, parts.shapes[path]) for path, each in sources.items())
        if name.endswith("experts.up_proj"):
            # Identity experts have rows too, which nothing reads.
            views = tuple(each[:computed] for each in views)
        return [Piece(name, sources, views, dim)] if sources else []

    pieces = piece("router.gate.layers.0.weight", f"{form.router}.{form.weight}")
    pieces += piece("router.gate.layers.0.bias", f"{form.router}.bias")
    pieces += piece("router.selection_bias", form.selection_bias or "")
    if form.experts == "split":
        num_experts = tensor_at(block, f"{form.router}.{form.weight}").shape[0]
        w1, v1, w2 = (tensor_at(block, f"experts.mlp.{name}") for name in ("w1", "v1", "w2"))
        up = tuple(each.view(num_experts, -1, each.shape[1]) for each in (w1, v1))
        pieces.append(Piece("experts.up_proj", {"experts.mlp.w1": w1, "experts.mlp.v1": v1}, up, 1))
        down = w2.view(num_experts, -1, w2.shape[1]).mT
        pieces.append(Piece("experts.down_proj", {"experts.mlp.w2": w2}, (down,)))
    else:
        # Latent and identity experts have the stacked ones inside.
        latent = "fc1_latent_proj.weight" in parts.shapes
        bank = "experts.experts" if latent or form.experts == "identity" else "experts"
        for first in ("experts.gate_up_proj", "experts.up_proj"):
            pieces += piece(f"{bank}.up_proj", first)
            pieces += piece(f"{bank}.up_bias", f"{first}_bias")
        pieces += piece(f"{bank}.down_proj", "experts.down_proj")
        pieces += piece(f"{bank}.down_bias", "experts.down_proj_bias")
        for mine, theirs in {"into_latent": "fc1_latent_proj", "out_of_latent": "fc2_latent_proj"}.items():
            for kind in ("weight", "bias"):
                pieces += piece(f"experts.{mine}.{kind}", f"{theirs}.{kind}")
    for kind in ("weight", "bias"):
        both = (f"{form.shared}.{name}.{kind}" for name in ("gate_proj", "up_proj"))
        pieces += piece(f"shared.up_proj.{kind}", *both)
        pieces += piece(f"shared.down_proj.{kind}", f"{form.shared}.down_proj.{kind}")
    pieces += piece("shared.gate.weight", f"{form.shared_gate}.weight")
    return tuple(pieces)


def _view(path: str, tensor: Tensor, shape: tuple[str, ...]) -> Tensor:
    """Returns a tensor in the layer's layout: a bias as a vector, a stack of matrices as ``(E, out, in)``."""
    if len(shape) == 2 and shape[0] == "1" and shape[1] in ("A", "E"):
        return tensor[0]
    transposed = len(shape) == 3 and (shape[-1] in ("D", "L")) == path.endswith("down_proj")
    return tensor.mT if transposed else tensor
