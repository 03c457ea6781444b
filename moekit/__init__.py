"""Mixture-of-Experts and fusion layers for PyTorch, as small parts that you compose.

A sparse layer is four parts: a router chooses experts for each token (:class:`Routing`), a plan orders the chosen
slots by expert (:class:`DispatchPlan`), experts compute, combine adds each token's results.
"""

from moekit.__about__ import __version__
from moekit.contrastive import global_contrastive_loss, local_contrastive_loss
from moekit.distributed import all_gather_with_gradient, all_reduce_stats
from moekit.experts import FFN, CrossScaleExpert, CrossScaleExperts, Experts, FFNExperts, ModuleExperts, ZeroExpert
from moekit.fusion import (
    BidirectionalCrossAttention,
    CrossAttentionOutput,
    CrossScaleAttention,
    CrossScaleOutput,
    GateOutput,
    ModalityGate,
    first_token,
    last_token,
    masked_max,
    masked_mean,
    sdpa_attention,
    xformers_attention,
)
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
from moekit.routers import ExpertChoiceRouter, HardRouter, HashRouter, Router, TopKRouter
from moekit.routing import RouterStats, Routing, router_stats
from moekit.soft import SoftMoE

__all__ = [
    "FFN",
    "BidirectionalCrossAttention",
    "CrossAttentionOutput",
    "CrossScaleAttention",
    "CrossScaleExpert",
    "CrossScaleExperts",
    "CrossScaleOutput",
    "DispatchPlan",
    "ExpertChoiceRouter",
    "Experts",
    "FFNExperts",
    "GateOutput",
    "HardRouter",
    "HashRouter",
    "MoEOutput",
    "ModalityGate",
    "ModuleExperts",
    "Router",
    "RouterStats",
    "Routing",
    "SoftMoE",
    "SparseMoE",
    "TopKRouter",
    "ZeroExpert",
    "__version__",
    "all_gather_with_gradient",
    "all_reduce_stats",
    "combine",
    "dispatch",
    "first_token",
    "global_contrastive_loss",
    "importance_loss",
    "last_token",
    "load_balancing_loss",
    "load_loss",
    "local_contrastive_loss",
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
    "xformers_attention",
]
