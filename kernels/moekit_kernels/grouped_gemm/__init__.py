"""Grouped GEMM: every row times the weight matrix of its own expert."""

from moekit_kernels.grouped_gemm.op import grouped_linear
from moekit_kernels.grouped_gemm.reference import grouped_linear_reference

__all__ = ["grouped_linear", "grouped_linear_reference"]
