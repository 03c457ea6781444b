"""Routing: from router logits, or from the input of a linear gate, to gates, ids and the sums that losses need."""

from moekit_kernels.routing.op import route
from moekit_kernels.routing.op_linear import route_linear
from moekit_kernels.routing.reference import Routed, route_reference
from moekit_kernels.routing.sums import RoutingCounts, RoutingSums, routing_sums

__all__ = ["Routed", "RoutingCounts", "RoutingSums", "route", "route_linear", "route_reference", "routing_sums"]
