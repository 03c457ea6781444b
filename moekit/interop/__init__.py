"""Layers of other libraries as moekit layers, and moekit layers in other formats."""

from moekit.interop.transformers import (
    SwappedBlocks,
    from_transformers,
    fused_activation,
    load_transformers_,
    register_experts,
    save_transformers,
    swap_moe_blocks_,
    to_transformers,
)
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
    "SwappedBlocks",
    "UpcycledMLP",
    "UpcyclingMethod",
    "collect_stats",
    "from_transformers",
    "fused_activation",
    "load_transformers_",
    "merge_experts_",
    "prune_experts_",
    "register_experts",
    "save_transformers",
    "swap_moe_blocks_",
    "to_dense_",
    "to_transformers",
    "upcycle_",
]
