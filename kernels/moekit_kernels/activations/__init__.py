"""Activations of expert FFNs: plain PyTorch, derivatives and Triton functions, as objects with a name."""

from moekit_kernels.activations.activation import ACTIVATIONS, Activation, activation_of, glu
from moekit_kernels.activations.library import clamped_swiglu, situ, situ_glu
from moekit_kernels.activations.triton_form import TritonActivation

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "TritonActivation",
    "activation_of",
    "clamped_swiglu",
    "glu",
    "situ",
    "situ_glu",
]
