"""Layers of other libraries as moekit layers, and moekit layers in other formats."""

from moekit.interop.transformers import from_transformers, fused_activation, register_experts
from moekit.interop.upcycling import (
    Copies,
    DropUpcycling,
    MergedRouter,
    Noise,
    UpcycledMLP,
    UpcyclingMethod,
    collect_stats,
    merge_experts_,
    prune_experts_,
    to_dense_,
    upcycle_,
)

__all__ = [
    "Copies",
    "DropUpcycling",
    "MergedRouter",
    "Noise",
    "UpcycledMLP",
    "UpcyclingMethod",
    "collect_stats",
    "from_transformers",
    "fused_activation",
    "merge_experts_",
    "prune_experts_",
    "register_experts",
    "to_dense_",
    "upcycle_",
]
