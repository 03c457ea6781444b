"""Grouped GEMM of weights in int8: every row times the scaled integer matrix of its own expert."""

from moekit_kernels.grouped_gemm_int8.op import grouped_gemm_int8
from moekit_kernels.grouped_gemm_int8.quantize import Int8Weight, dequantize, quantize
from moekit_kernels.grouped_gemm_int8.reference import grouped_gemm_int8_reference

__all__ = ["Int8Weight", "dequantize", "grouped_gemm_int8", "grouped_gemm_int8_reference", "quantize"]
