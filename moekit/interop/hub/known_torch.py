"""The layers and functions of torch that files name."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moekit.interop.hub.registry import FUNCTIONS, POSITIONAL, add_part, attributes_of

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_EMBEDDING = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")

_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv1d: (*_CONVOLUTION, "padding_mode"),
    nn.Conv2d: (*_CONVOLUTION, "padding_mode"),
    nn.Embedding: _EMBEDDING,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.Dropout: ("p", "inplace"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.GELU: ("approximate",),
    nn.ReLU: ("inplace",),
    nn.SiLU: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.Softplus: ("beta", "threshold"),
    nn.Identity: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
}
"""Layers, and those arguments of theirs that are their attributes."""

_FUNCTIONALS = (
    *("celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu", "relu6"),
    *("selu", "silu", "softplus", "softsign"),
)


def _functions() -> dict[str, Callable[..., Any]]:
    functional = {f"torch.nn.functional.{name}": getattr(F, name) for name in _FUNCTIONALS}
    return functional | {f"torch.{name}": getattr(torch, name) for name in ("erf", "relu", "sigmoid", "sin", "tanh")}


def _children(module: nn.Sequential) -> dict[str, Any]:
    return {POSITIONAL: list(module)}


def register() -> None:
    """Registers the layers and functions."""
    for kind, names in _LAYERS.items():
        add_part(kind, f"torch.nn.{kind.__name__}", attributes_of(*names))
    add_part(nn.Sequential, "torch.nn.Sequential", _children)
    FUNCTIONS.update(_functions())
