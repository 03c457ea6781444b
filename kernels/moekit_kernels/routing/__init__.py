"""Routing: from router logits to gates, ids and the sums that losses are made of."""

from moekit_kernels.routing.checks import IMPLS, SCORINGS, Impl, Scoring, check_groups, check_limits
from moekit_kernels.routing.op import resolve_impl, route
from moekit_kernels.routing.reference import (
    Decision,
    Routed,
    decide_reference,
    entropy,
    finite_logits,
    mark_invalid,
    route_reference,
)
from moekit_kernels.routing.selection import limit_to_groups, top_k_ids

__all__ = [
    "IMPLS",
    "SCORINGS",
    "Decision",
    "Impl",
    "Routed",
    "Scoring",
    "check_groups",
    "check_limits",
    "decide_reference",
    "entropy",
    "finite_logits",
    "limit_to_groups",
    "mark_invalid",
    "resolve_impl",
    "route",
    "route_reference",
    "top_k_ids",
]
