"""Layers of other libraries, as moekit layers."""

from moekit.interop.transformers import from_transformers

__all__ = ["from_transformers"]
