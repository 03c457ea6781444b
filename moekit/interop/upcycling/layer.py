"""The module that stands where an MLP stood."""

import copy
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.experts.activation import ActivationLike, activation_function
from moekit.experts.ffn import FFNExperts
from moekit.interop.upcycling.mlp import MLPLayout, MLPWeights
from moekit.layer import SparseMoE
from moekit_kernels.activations.activation import label


class UpcycledMLP(nn.Module):
    """A sparse layer in the place of an MLP: it takes what that took and returns one tensor, as that did.

    Statistics, for auxiliary losses and logs, are those of ``moe``: read them by
    :func:`~moekit.interop.collect_stats`, or by a forward hook of your own on ``moe``. Built by
    :func:`~moekit.interop.upcycle_`.

    Args:
        moe: The sparse layer.
        output_dropouts: Dropouts that followed the MLP's last layer.
        dense: The MLP, of which the weights are not kept.
        layout: Where its parts lie.
        shard_of_expert: Which part of the hidden layer each expert started from.

    Attributes:
        moe: The sparse layer.
        dropout: The dropouts, or None.
        granularity: Number of parts of the hidden layer.
        shard_of_expert: See above.
    """

    def __init__(
        self,
        moe: SparseMoE,
        output_dropouts: Sequence[nn.Module],
        dense: nn.Module,
        layout: MLPLayout,
        shard_of_expert: Sequence[int],
    ) -> None:
        super().__init__()
        self.moe = moe
        self.dropout = nn.Sequential(*output_dropouts) if output_dropouts else None
        self.shard_of_expert = tuple(shard_of_expert)
        self.granularity = 1 + max(shard_of_expert)
        # In a tuple, so that it is no part of the model: it has no weights, and only tells how to build the MLP again.
        self._dense = (_without_weights(dense),)
        self._layout = layout

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D2"]:
        """Routes, computes and combines.

        Args:
            x: Tokens ``(..., D)``.

        Returns:
            The output of the layer, without its statistics.
        """
        # In training always with them, so that activation checkpointing computes the same again whether read or not.
        output: Tensor = self.moe(x, stats=self.training).output
        return output if self.dropout is None else self.dropout(output)

    def dense_with(self, weights: MLPWeights, requires_grad: Sequence[bool]) -> nn.Module:
        """Builds the MLP that stood here with other weights.

        Args:
            weights: The weights.
            requires_grad: Whether those of the first and of the last layer are trained.
        """
        (empty,) = self._dense
        dense = copy.deepcopy(empty)
        for path, layer in cast(Iterable[tuple[str, nn.Module]], dense.named_modules()):
            trained = requires_grad[path == self._layout.down]
            for name, weight in list(layer.named_parameters(recurse=False)):
                fresh = torch.empty_like(weight, device=weights.up.device, dtype=weights.up.dtype)
                setattr(layer, name, nn.Parameter(fresh, requires_grad=trained))
        self._layout.write_(dense, weights)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Shows what it stands for."""
        (dense,) = self._dense
        return f"in place of {type(dense).__name__}, granularity={self.granularity}"


class DropoutAfter(nn.Module):
    """An activation and the dropouts that follow it."""

    def __init__(self, activation: ActivationLike, dropouts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.activation: ActivationLike = activation
        self.dropouts = nn.Sequential(*dropouts)
        self.__name__ = f"{label(activation)} and dropout"  # shown by the experts

    def forward(self, pre: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Applies the activation and the dropouts."""
        return self.dropouts(activation_function(self.activation)(pre))


def expert_weights(experts: FFNExperts) -> list[MLPWeights]:
    """Returns the weights of each expert, as views."""
    biases = [[None] * experts.num_experts if bias is None else bias.unbind() for bias in _biases(experts)]
    return [
        MLPWeights(*each) for each in zip(experts.up_proj.unbind(), experts.down_proj.unbind(), *biases, strict=True)
    ]


@torch.no_grad()
def experts_of(weights: Sequence[MLPWeights], activation: ActivationLike, like: FFNExperts) -> FFNExperts:
    """Builds experts of these weights, with the settings and ``requires_grad`` of other ones."""
    first = weights[0]
    experts = empty_experts(first, len(weights), activation, impl=like.impl)
    experts.recompute, experts.init_scale = like.recompute, like.init_scale
    for expert, own in zip(weights, expert_weights(experts), strict=True):
        copy_weights_(own, expert)
    for (name, mine), (_, its) in zip(experts.named_parameters(), like.named_parameters(), strict=True):
        assert mine.shape[1:] == its.shape[1:], name
        mine.requires_grad_(its.requires_grad)
    return experts.train(like.training)


def empty_experts(weights: MLPWeights, num_experts: int, activation: ActivationLike, *, impl: str) -> FFNExperts:
    """Builds experts of the shapes, dtype and device of an MLP, without drawing weights."""
    experts = FFNExperts(
        weights.up.shape[1],
        weights.hidden_dim,
        num_experts,
        activation=activation,
        bias=True,
        out_dim=weights.down.shape[0],
        impl=impl,  # pyright: ignore[reportArgumentType]
        device="meta",
        dtype=weights.up.dtype,
    )
    if weights.up_bias is None:
        experts.up_bias = None
    if weights.down_bias is None:
        experts.down_bias = None
    return experts.to_empty(device=weights.up.device)


@torch.no_grad()
def copy_weights_(mine: MLPWeights, theirs: MLPWeights) -> None:
    """Copies weights into others of the same shapes."""
    for my, their in zip(mine, theirs, strict=True):
        if my is not None and their is not None:
            my.copy_(their)


def _biases(experts: FFNExperts) -> tuple[Tensor | None, Tensor | None]:
    return experts.up_bias, experts.down_bias


def _without_weights(module: nn.Module) -> nn.Module:
    empty: dict[int, object] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in module.parameters()
    }
    # deepcopy takes what its memo holds in place of a copy.
    return copy.deepcopy(module, empty)
