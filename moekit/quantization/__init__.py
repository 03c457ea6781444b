"""Experts whose weights are integers of 8 bits, for inference and as the frozen base of adapters."""

from moekit.quantization.edit import dequantize_experts_, quantize_experts_

__all__ = ["dequantize_experts_", "quantize_experts_"]
