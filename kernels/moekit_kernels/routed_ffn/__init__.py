"""A whole layer of linear router and feed-forward experts as one operation, for compiled code."""

from moekit_kernels.routed_ffn.op import routed_ffn
from moekit_kernels.routed_ffn.operands import LayerStats, Weights

__all__ = ["LayerStats", "Weights", "routed_ffn"]
