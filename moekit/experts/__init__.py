"""Experts: they compute the tokens that a plan assigns to them."""

from moekit.experts.base import Experts
from moekit.experts.cross_scale import CrossScaleExperts
from moekit.experts.cross_scale_expert import CrossScaleExpert
from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts
from moekit.experts.glu_layout import concatenate_glu, interleave_glu
from moekit.experts.modules import ModuleExperts, ZeroExpert
from moekit.experts.zero_computation import ZeroComputationExperts

__all__ = [
    "FFN",
    "CrossScaleExpert",
    "CrossScaleExperts",
    "Experts",
    "FFNExperts",
    "ModuleExperts",
    "ZeroComputationExperts",
    "ZeroExpert",
    "concatenate_glu",
    "interleave_glu",
]
