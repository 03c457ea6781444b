"""Routers: they choose experts for each token."""

from moekit.routers.base import Router
from moekit.routers.dynamic import DynamicTopKRouter
from moekit.routers.expert_choice import ExpertChoiceRouter
from moekit.routers.hard import HardRouter
from moekit.routers.hash import HashRouter
from moekit.routers.schedule import bias_update_rate
from moekit.routers.sparse_mixer import SparseMixerRouter
from moekit.routers.top_k import TopKRouter

__all__ = [
    "DynamicTopKRouter",
    "ExpertChoiceRouter",
    "HardRouter",
    "HashRouter",
    "Router",
    "SparseMixerRouter",
    "TopKRouter",
    "bias_update_rate",
]
