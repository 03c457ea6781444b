"""Plan, dispatch and combine: the slots in the order of their experts, and back.

These are the functions of :mod:`moekit_kernels`, under the names of this package. They are shape-static and read
nothing on the host.
"""

from moekit_kernels.combine import combine
from moekit_kernels.plan import DispatchPlan, dispatch, plan_dispatch, plan_expert_choice
from moekit_kernels.plan.checks import DROP_POLICIES, check_gates, check_tokens

__all__ = [
    "DROP_POLICIES",
    "DispatchPlan",
    "check_gates",
    "check_tokens",
    "combine",
    "dispatch",
    "plan_dispatch",
    "plan_expert_choice",
]
