"""Slots in the order of their experts, and tiles of rows for the kernels that follow."""

from moekit_kernels.plan.op import plan_slots, resolve_impl
from moekit_kernels.plan.reference import plan_slots_reference
from moekit_kernels.plan.slot_plan import SlotPlan

__all__ = ["SlotPlan", "plan_slots", "plan_slots_reference", "resolve_impl"]
