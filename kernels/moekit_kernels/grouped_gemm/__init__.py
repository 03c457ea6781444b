"""Grouped GEMM: every row times the weight matrix of its own expert."""

from moekit_kernels.grouped_gemm.op import grouped_gemm
from moekit_kernels.grouped_gemm.reference import grouped_gemm_reference

__all__ = ["grouped_gemm", "grouped_gemm_reference"]
