"""Dense models made sparse, and sparse layers made smaller or dense again."""

from moekit.interop.upcycling.dense import to_dense_
from moekit.interop.upcycling.layer import UpcycledMLP
from moekit.interop.upcycling.methods import Copies, DropUpcycling, Noise, UpcyclingMethod
from moekit.interop.upcycling.routers import MergedRouter
from moekit.interop.upcycling.shrink import merge_experts_, prune_experts_
from moekit.interop.upcycling.stats import collect_stats
from moekit.interop.upcycling.upcycle import upcycle_

__all__ = [
    "Copies",
    "DropUpcycling",
    "MergedRouter",
    "Noise",
    "UpcycledMLP",
    "UpcyclingMethod",
    "collect_stats",
    "merge_experts_",
    "prune_experts_",
    "to_dense_",
    "upcycle_",
]
