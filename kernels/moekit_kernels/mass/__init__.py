"""As many of a token's ranked experts as reach a probability mass."""

from moekit_kernels.mass.op import limit_to_mass
from moekit_kernels.mass.reference import LimitedGates, limit_to_mass_reference

__all__ = ["LimitedGates", "limit_to_mass", "limit_to_mass_reference"]
