"""The plan: slots in the order of their experts, tokens copied into that order, tiles of rows for the kernels."""

from moekit_kernels.plan.dispatch_plan import DispatchPlan, RowOrder
from moekit_kernels.plan.expert_choice import plan_expert_choice
from moekit_kernels.plan.op import plan_dispatch
from moekit_kernels.plan.reference import plan_dispatch_reference
from moekit_kernels.plan.token_rows import dispatch

__all__ = [
    "DispatchPlan",
    "RowOrder",
    "dispatch",
    "plan_dispatch",
    "plan_dispatch_reference",
    "plan_expert_choice",
]
