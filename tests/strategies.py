"""Random routings and expert weights for property tests."""

from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from moekit_kernels.plan import DispatchPlan
from tests.oracles import GATED, NAIVE_ACTIVATIONS, naive_plan

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)

SKEWS = ("even", "zipf", "one expert", "some experts")


class Routed(NamedTuple):
    """The experts of each token."""

    expert_ids: Tensor
    kept: Tensor
    num_experts: int
    seed: int

    @property
    def plan(self) -> DispatchPlan:
        return naive_plan(self.expert_ids, self.num_experts, self.kept)


@st.composite
def routed(draw: st.DrawFn, max_tokens: int = 13) -> Routed:
    """Ids ``(T, K)`` without repetition in a token, even or skewed, with or without dropped slots."""
    num_tokens = draw(st.sampled_from([0, 1, 2, 3, 7, max_tokens]))
    num_experts = draw(st.sampled_from([1, 2, 3, 5, 7]))
    top_k = draw(st.integers(1, num_experts))
    skew = draw(st.sampled_from(SKEWS))
    dropped = draw(st.sampled_from([0.0, 0.3, 1.0]))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    if skew == "zipf":  # drawn without repetition with weights 1, 1/2, 1/3, ...: Gumbel noise on their logarithms
        rank = torch.arange(1, num_experts + 1)
        scores = -rank.log() - (-scores.clamp(1e-6).log()).log()
    elif skew == "one expert":
        scores[:, num_experts // 2] += 1
    elif skew == "some experts":
        scores[:, ::2] += 1
    ids = scores.argsort(-1, descending=True)[:, :top_k]
    kept = torch.rand(num_tokens, top_k, generator=generator) >= dropped
    return Routed(ids, kept, num_experts, seed)


class FFNCase(NamedTuple):
    """Arguments of the expert FFN in float64; every floating one is a leaf that requires grad."""

    routed: Routed
    x: Tensor
    gates: Tensor
    up_proj: Tensor
    down_proj: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str

    def leaves(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Fresh leaves of ``dtype`` by name; gates are at least float32, as routers make them."""
        leaves: dict[str, Tensor] = {}
        for name in ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias"):
            value = getattr(self, name)
            if value is not None:
                leaf_dtype = torch.promote_types(dtype, torch.float32) if name == "gates" else dtype
                leaves[name] = value.to(leaf_dtype).clone().requires_grad_()
        return leaves


def ffn_case(routed: Routed, dim: int, hidden: int, out_dim: int, activation: str, bias: bool) -> FFNCase:
    """Draws the numbers of a case; products of weights and tokens are of order 1."""
    generator = torch.Generator().manual_seed(routed.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    experts = routed.num_experts
    up_rows = 2 * hidden if activation in GATED else hidden
    return FFNCase(
        routed,
        normal(routed.expert_ids.shape[0], dim),
        normal(*routed.expert_ids.shape),
        normal(experts, up_rows, dim) / dim**0.5,
        normal(experts, out_dim, hidden) / hidden**0.5,
        normal(experts, up_rows) if bias else None,
        normal(experts, out_dim) if bias else None,
        activation,
    )


@st.composite
def ffn_cases(draw: st.DrawFn) -> FFNCase:
    """Expert FFNs of every activation, odd widths included."""
    widths = st.sampled_from([1, 2, 5, 8])
    return ffn_case(
        draw(routed()),
        dim=draw(widths),
        hidden=draw(widths),
        out_dim=draw(widths),
        activation=draw(st.sampled_from(sorted(NAIVE_ACTIVATIONS))),
        bias=draw(st.booleans()),
    )


def plan_by_slot(row_of_slot: Tensor) -> DispatchPlan:
    """A plan of one expert with the rows of each slot in ``row_of_slot``, ``(T, K)``."""
    slot_of_row = row_of_slot.flatten().argsort()
    plan = plan_by_token(slot_of_row // max(row_of_slot.shape[1], 1), slot_of_row, row_of_slot.shape[0])
    return plan._replace(row_of_slot=row_of_slot)


def plan_by_token(token_of_row: Tensor, slot_of_row: Tensor, num_tokens: int) -> DispatchPlan:
    """A plan of one expert with any number of rows per token, as expert choice has them."""
    count = torch.tensor([token_of_row.shape[0]], device=token_of_row.device)
    offsets = torch.cat([torch.zeros_like(count), count])
    return DispatchPlan(token_of_row, slot_of_row, offsets, None, count, torch.zeros_like(count), num_tokens)
