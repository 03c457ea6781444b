"""Activations of experts as objects: those of the package, and how to make others that run fused.

Layers take an :class:`Activation` or its name as ``activation``.
"""

from moekit_kernels.activations import (
    Activation,
    TritonActivation,
    activation_of,
    clamped_swiglu,
    glu,
    situ,
    situ_glu,
)

__all__ = [
    "Activation",
    "TritonActivation",
    "activation_of",
    "clamped_swiglu",
    "glu",
    "situ",
    "situ_glu",
]
