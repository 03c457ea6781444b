"""Dense models made sparse, and sparse layers made smaller or dense again."""

from moekit.interop.upcycling.layer import UpcycledMLP
from moekit.interop.upcycling.methods import Copies, DropUpcycling, Noise, UpcyclingMethod
from moekit.interop.upcycling.stats import collect_stats
from moekit.interop.upcycling.upcycle import upcycle_

__all__ = ["Copies", "DropUpcycling", "Noise", "UpcycledMLP", "UpcyclingMethod", "collect_stats", "upcycle_"]
