"""Combine: for each token the gate-weighted sum of its rows, in a fixed order."""

from moekit_kernels.combine.op import combine
from moekit_kernels.combine.reference import combine_reference

__all__ = ["combine", "combine_reference"]
