"""What an MLP consists of: its weights in one layout, and where they lie in its module.

Letters: D width, F hidden width, D2 width of the output.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.experts.activation import ActivationLike
from moekit.experts.glu_layout import concatenate_glu, interleave_glu

Packing = Literal["gate_first", "gate_last", "interleaved"]
PACKINGS: tuple[Packing, ...] = ("gate_first", "gate_last", "interleaved")


class MLPWeights(NamedTuple):
    """The weights of an MLP as those of one expert of :class:`~moekit.experts.ffn.FFNExperts`.

    Attributes:
        up: ``(F, D)``; of a gated MLP ``(2F, D)``, gate rows first.
        down: ``(D2, F)``.
        up_bias: ``(F,)`` or ``(2F,)``, or None.
        down_bias: ``(D2,)``, or None.
    """

    up: Float[Tensor, "R D"]
    down: Float[Tensor, "D2 F"]
    up_bias: Float[Tensor, "R"] | None
    down_bias: Float[Tensor, "D2"] | None

    @property
    def hidden_dim(self) -> int:
        """``F``."""
        return self.down.shape[1]

    @property
    def gated(self) -> bool:
        """Whether ``up`` holds the rows of a gate too."""
        return self.up.shape[0] == 2 * self.hidden_dim


@dataclass(frozen=True)
class MLPLayout:
    """Where the parts of an MLP lie in its module, by name.

    Attributes:
        up: The first linear layer; of a gated MLP that of the values, or of both if ``packing`` is given.
        down: The last linear layer.
        gate: The linear layer of the gate, where it is one of its own.
        packing: The order of the rows of a first layer that holds gate and values.
        activation: An activation of :class:`~moekit.experts.ffn.FFNExperts`.
        hidden_dropouts: The dropouts after the activation.
        output_dropouts: The dropouts after the last layer.
    """

    up: str
    down: str
    gate: str | None = None
    packing: Packing | None = None
    activation: ActivationLike = "gelu"
    hidden_dropouts: tuple[str, ...] = ()
    output_dropouts: tuple[str, ...] = ()

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.gate is not None or self.packing is not None

    @torch.no_grad()
    def read(self, module: nn.Module) -> MLPWeights:
        """Returns the weights of a module of this layout, as views where that is possible."""
        up, up_bias = _weight(module, self.up), _bias(module, self.up)
        if self.gate is not None:
            gate_bias = _bias(module, self.gate)
            up = torch.cat([_weight(module, self.gate), up])
            up_bias = None if gate_bias is None or up_bias is None else torch.cat([gate_bias, up_bias])
        elif self.packing is not None:
            up = _gate_first(up, self.packing)
            up_bias = None if up_bias is None else _gate_first(up_bias, self.packing)
        return MLPWeights(up, _weight(module, self.down), up_bias, _bias(module, self.down))

    @torch.no_grad()
    def write_(self, module: nn.Module, weights: MLPWeights) -> None:
        """Copies weights into a module of this layout."""
        rows = {self.up: (weights.up, weights.up_bias)}
        if self.gate is not None:
            gate, up = weights.up.chunk(2)
            gate_bias, up_bias = (None, None) if weights.up_bias is None else weights.up_bias.chunk(2)
            rows = {self.gate: (gate, gate_bias), self.up: (up, up_bias)}
        elif self.packing is not None:
            bias = None if weights.up_bias is None else _packed(weights.up_bias, self.packing)
            rows = {self.up: (_packed(weights.up, self.packing), bias)}
        for name, (weight, bias) in (rows | {self.down: (weights.down, weights.down_bias)}).items():
            _weight(module, name).copy_(weight)
            if bias is not None:
                cast(Tensor, _bias(module, name)).copy_(bias)


def is_conv1d(layer: nn.Module) -> bool:
    """Returns whether a layer is the linear layer of GPT-2 in ``transformers``, whose weight is ``(in, out)``."""
    return (type(layer).__module__, type(layer).__name__) == ("transformers.pytorch_utils", "Conv1D")


def has_bias(layer: nn.Module) -> bool:
    """Returns whether a linear layer has a bias."""
    return cast(Tensor | None, layer.bias) is not None


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """Returns the widths of input and output of a linear layer."""
    weight = cast(Tensor, layer.weight)
    out_features, in_features = weight.T.shape if is_conv1d(layer) else weight.shape
    return in_features, out_features


def _weight(module: nn.Module, name: str) -> Tensor:
    layer = module.get_submodule(name)
    weight = cast(Tensor, layer.weight)
    return weight.T if is_conv1d(layer) else weight


def _bias(module: nn.Module, name: str) -> Tensor | None:
    return cast(Tensor | None, module.get_submodule(name).bias)


def _gate_first(rows: Tensor, packing: Packing) -> Tensor:
    if packing == "gate_first":
        return rows
    return concatenate_glu(rows, 0) if packing == "interleaved" else torch.cat(rows.chunk(2)[::-1])


def _packed(rows: Tensor, packing: Packing) -> Tensor:
    if packing == "interleaved":
        return interleave_glu(rows, 0)
    return _gate_first(rows, packing)  # swapping the halves is its own inverse
