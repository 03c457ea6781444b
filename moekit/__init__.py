"""Mixture-of-Experts and fusion layers for PyTorch, as small parts that you compose.

A sparse layer is four parts: a router chooses experts for each token (:class:`Routing`), a plan orders the chosen
slots by expert (:class:`DispatchPlan`), experts compute, combine adds each token's results.

What is public: a name is public if it is in ``moekit.__all__``, in ``moekit.activations.__all__``, in
``moekit.distributed.__all__``, in ``moekit.inspect.__all__``, in ``moekit.lora.__all__``, in
``moekit.quantization.__all__``, in ``moekit.interop.__all__``, in ``moekit.interop.hub.__all__`` or a public name of
``moekit.interop.onnx`` (interop needs other libraries, so it is imported by itself, as are the tools of inspect, LoRA,
quantisation and experts over ranks).
``moekit.__all__`` holds everything that a caller builds, calls or receives: modules, functions and the types of their
results. Its packages
list their own part of it. All other names and the modules that hold them are private and may change without notice.
"""

from moekit.__about__ import __version__
from moekit.collectives import all_gather_with_gradient, all_reduce_stats
from moekit.contrastive import (
    LocalContrast,
    WordAlignment,
    WordStates,
    aggregate_word_pieces,
    attention_maps,
    global_contrastive_loss,
    local_contrastive_loss,
    local_scores,
    word_alignment_loss,
)
from moekit.dynamic_loss import DynamicRoutingLosses, dynamic_routing_losses
from moekit.experts import (
    FFN,
    CrossScaleExpert,
    CrossScaleExperts,
    Experts,
    FFNExperts,
    ModuleExperts,
    ZeroComputationExperts,
    ZeroExpert,
    concatenate_glu,
    interleave_glu,
)
from moekit.fusion import (
    AttentionFunction,
    BidirectionalCrossAttention,
    CrossAttentionOutput,
    CrossScaleAttention,
    CrossScaleOutput,
    GateOutput,
    ModalityGate,
    WeightedAttention,
    first_token,
    last_token,
    masked_max,
    masked_mean,
    sdpa_attention,
    weighted_attention,
    xformers_attention,
)
from moekit.graphs import graphed
from moekit.layer import MoEOutput, SparseMoE
from moekit.losses import (
    importance_loss,
    load_balancing_loss,
    load_loss,
    mutual_information_loss,
    router_entropy,
    router_label_loss,
    router_z_loss,
)
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch, plan_expert_choice
from moekit.routers import (
    DynamicTopKRouter,
    ExpertChoiceRouter,
    HardRouter,
    HashRouter,
    Router,
    SparseMixerRouter,
    TopKRouter,
    bias_update_rate,
)
from moekit.routing import FusedSums, RouterStats, Routing, RoutingCounts, RoutingSums, router_stats
from moekit.sequence_loss import sequence_balancing_loss
from moekit.soft import SoftMoE

__all__ = [
    "FFN",
    "AttentionFunction",
    "BidirectionalCrossAttention",
    "CrossAttentionOutput",
    "CrossScaleAttention",
    "CrossScaleExpert",
    "CrossScaleExperts",
    "CrossScaleOutput",
    "DispatchPlan",
    "DynamicRoutingLosses",
    "DynamicTopKRouter",
    "ExpertChoiceRouter",
    "Experts",
    "FFNExperts",
    "FusedSums",
    "GateOutput",
    "HardRouter",
    "HashRouter",
    "LocalContrast",
    "MoEOutput",
    "ModalityGate",
    "ModuleExperts",
    "Router",
    "RouterStats",
    "Routing",
    "RoutingCounts",
    "RoutingSums",
    "SoftMoE",
    "SparseMixerRouter",
    "SparseMoE",
    "TopKRouter",
    "WeightedAttention",
    "WordAlignment",
    "WordStates",
    "ZeroComputationExperts",
    "ZeroExpert",
    "__version__",
    "aggregate_word_pieces",
    "all_gather_with_gradient",
    "all_reduce_stats",
    "attention_maps",
    "bias_update_rate",
    "combine",
    "concatenate_glu",
    "dispatch",
    "dynamic_routing_losses",
    "first_token",
    "global_contrastive_loss",
    "graphed",
    "importance_loss",
    "interleave_glu",
    "last_token",
    "load_balancing_loss",
    "load_loss",
    "local_contrastive_loss",
    "local_scores",
    "masked_max",
    "masked_mean",
    "mutual_information_loss",
    "plan_dispatch",
    "plan_expert_choice",
    "router_entropy",
    "router_label_loss",
    "router_stats",
    "router_z_loss",
    "sdpa_attention",
    "sequence_balancing_loss",
    "weighted_attention",
    "word_alignment_loss",
    "xformers_attention",
]
