"""Layers of other libraries as moekit layers, and moekit layers in other formats."""

from moekit.interop.transformers import from_transformers, fused_activation, register_experts
from moekit.interop.upcycling import (
    Copies,
    DropUpcycling,
    Noise,
    UpcycledMLP,
    UpcyclingMethod,
    collect_stats,
    upcycle_,
)

__all__ = [
    "Copies",
    "DropUpcycling",
    "Noise",
    "UpcycledMLP",
    "UpcyclingMethod",
    "collect_stats",
    "from_transformers",
    "fused_activation",
    "register_experts",
    "upcycle_",
]
