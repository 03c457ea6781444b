"""Brings rows home: a deterministic gather and gate-weighted sum over the slots of each token."""

from moekit_kernels.combine.op import combine, combine_by_token, resolve_impl
from moekit_kernels.combine.reference import combine_by_token_reference, combine_reference

__all__ = ["combine", "combine_by_token", "combine_by_token_reference", "combine_reference", "resolve_impl"]
