"""Layers of other libraries as moekit layers, and moekit layers in other formats."""

from moekit.interop.transformers import from_transformers, fused_activation, register_experts

__all__ = ["from_transformers", "fused_activation", "register_experts"]
