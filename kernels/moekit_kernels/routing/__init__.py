"""Routing: from router logits to gates, ids and the sums that losses are made of."""

from moekit_kernels.routing.op import route
from moekit_kernels.routing.reference import Routed, route_reference
from moekit_kernels.routing.sums import RoutingSums, routing_sums

__all__ = ["Routed", "RoutingSums", "route", "route_reference", "routing_sums"]
