"""Routing: from router logits to gates, ids and the sums that losses are made of."""

from moekit_kernels.routing.op import route
from moekit_kernels.routing.reference import Routed, route_reference

__all__ = ["Routed", "route", "route_reference"]
