"""The whole expert FFN as one operation: gather, up, activation, down, gate weighting, sum over slots."""

from moekit_kernels.moe_ffn.op import Recompute, moe_ffn
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.moe_ffn.reference import moe_ffn_reference

__all__ = ["ExpertWeights", "Recompute", "moe_ffn", "moe_ffn_reference"]
