"""Fusion of token streams and of feature maps: cross-attention, attention over scales, pooling, a sigmoid gate."""

from moekit.fusion.attention import (
    AttentionFunction,
    WeightedAttention,
    sdpa_attention,
    weighted_attention,
    xformers_attention,
)
from moekit.fusion.cross_attention import BidirectionalCrossAttention, CrossAttentionOutput
from moekit.fusion.cross_scale import CrossScaleAttention, CrossScaleOutput
from moekit.fusion.gate import GateOutput, ModalityGate
from moekit.fusion.pooling import first_token, last_token, masked_max, masked_mean

__all__ = [
    "AttentionFunction",
    "BidirectionalCrossAttention",
    "CrossAttentionOutput",
    "CrossScaleAttention",
    "CrossScaleOutput",
    "GateOutput",
    "ModalityGate",
    "WeightedAttention",
    "first_token",
    "last_token",
    "masked_max",
    "masked_mean",
    "sdpa_attention",
    "weighted_attention",
    "xformers_attention",
]
