"""The formulas of the library as loops over tokens and rows, and what tests compare with them.

Nothing here calls the library, whose ``DispatchPlan`` is only filled: the loops are written from the formulas in its
documentation.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from moekit_kernels.plan import DispatchPlan

# One tolerance per dtype, relative and absolute (the values compared are of order 1).
TOLERANCE = {
    torch.float64: 1e-12,  # 2e-16 a rounding, sums of up to some hundred terms
    torch.float32: 2e-5,  # 6e-8 a rounding; three chained sums of up to some hundred terms, some cancellation
    torch.float16: 5e-3,  # 5e-4 a rounding; the pre-activation, hidden and output are each rounded
    torch.bfloat16: 4e-2,  # 4e-3 a rounding, as above
}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compares at the tolerance of ``dtype``, by default the dtype of ``actual``."""
    tolerance = TOLERANCE[actual.dtype if dtype is None else dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``||actual - expected|| / ||expected||`` in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).norm() / expected.norm()).item()


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fills what ``torch.empty`` and functions like it return with NaN (integers: their maximum)."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        assert torch.ones(2).new_empty(3).isnan().all()
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before)


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0)


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _situ(x: Tensor) -> Tensor:
    return 4 * torch.tanh(x / 4) / (1 + torch.exp(-x))


def _clamped_swiglu(gate: Tensor, value: Tensor) -> Tensor:
    gate, value = torch.where(gate > 7, 7, gate), torch.where(value > 7, 7, torch.where(value < -7, -7, value))
    return (value + 1) * gate / (1 + torch.exp(-1.702 * gate))


def _situ_glu(gate: Tensor, value: Tensor) -> Tensor:
    return _situ(gate) * 25 * torch.tanh(value / 25)


def _times(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, value: act(gate) * value


def _concatenated(act: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return act(x[..., :half], x[..., half:])

    return forward


def _interleaved(act: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        columns = x.unbind(-1)
        return torch.stack([act(gate, value) for gate, value in zip(columns[::2], columns[1::2], strict=True)], -1)

    return forward


_NAIVE_PAIRS = {
    "swiglu": _times(_silu),
    "geglu": _times(_gelu),
    "geglu_tanh": _times(_gelu_tanh),
    "clamped_swiglu": _clamped_swiglu,
    "situ_glu": _situ_glu,
}
NAIVE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = (
    {
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "relu": _relu,
        "relu2": lambda x: _relu(x) ** 2,
        "silu": _silu,
        "situ": _situ,
    }
    | {name: _concatenated(pair) for name, pair in _NAIVE_PAIRS.items()}
    | {f"{name}_interleaved": _interleaved(pair) for name, pair in _NAIVE_PAIRS.items()}
)
GATED = (*_NAIVE_PAIRS, *(f"{name}_interleaved" for name in _NAIVE_PAIRS))


def naive_plan(expert_ids: Tensor, num_experts: int, kept: Tensor | None = None) -> DispatchPlan:
    """Sorts (expert, slot) pairs; slots that are not kept come last, and are counted for no expert."""
    num_tokens, top_k = expert_ids.shape
    flat = [int(e) for row in expert_ids.tolist() for e in row]
    flags = [True] * len(flat) if kept is None else kept.flatten().tolist()
    keyed = sorted((e if keep else num_experts, s) for s, (e, keep) in enumerate(zip(flat, flags, strict=True)))
    slot_of_row = [s for _, s in keyed]
    row_of_slot = torch.tensor([slot_of_row.index(s) for s in range(len(flat))], dtype=torch.int64)
    offsets = torch.tensor([sum(e < bound for e, _ in keyed) for bound in range(num_experts + 1)])
    return DispatchPlan(
        token_of_row=torch.tensor([s // top_k for s in slot_of_row], dtype=torch.int64),
        slot_of_row=torch.tensor(slot_of_row, dtype=torch.int64),
        offsets=offsets,
        row_of_slot=row_of_slot.view(num_tokens, top_k),
        tokens_per_expert=offsets.diff(),
        dropped_per_expert=torch.zeros(num_experts, dtype=torch.int64),
        num_tokens=num_tokens,
    )


def naive_grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None = None) -> Tensor:
    """One matrix-vector product per row."""
    bounds = offsets.tolist()
    outputs = []
    for r in range(x.shape[0]):
        owner = [e for e in range(weight.shape[0]) if bounds[e] <= r < bounds[e + 1]]
        y = (weight[owner[0]] @ x[r]) if owner else x.new_zeros(weight.shape[1])
        outputs.append(y + bias[owner[0]] if owner and bias is not None else y)
    return torch.stack(outputs) if outputs else x.new_zeros(0, weight.shape[1])


def naive_experts(
    x: Tensor,
    gates: Tensor,
    expert_ids: Tensor,
    kept: Tensor | None,
    expert: Callable[[int, Tensor], Tensor],
    out_dim: int,
) -> Tensor:
    """``out[t] = sum_k gates[t, k] * expert(ids[t, k], x[t])`` over the kept slots, token by token."""
    outputs = []
    for t in range(x.shape[0]):
        total = x.new_zeros(out_dim)
        for k, e in enumerate(expert_ids[t].tolist()):
            if kept is None or kept[t, k]:
                total = total + gates[t, k] * expert(e, x[t])
        outputs.append(total)
    return torch.stack(outputs) if outputs else x.new_zeros(0, out_dim)


def stacked_expert(
    up_proj: Tensor, down_proj: Tensor, up_bias: Tensor | None, down_bias: Tensor | None, activation: str
) -> Callable[[int, Tensor], Tensor]:
    """Expert ``e`` of stacked weights, on one token."""

    def expert(e: int, token: Tensor) -> Tensor:
        hidden = up_proj[e] @ token
        if up_bias is not None:
            hidden = hidden + up_bias[e]
        y = down_proj[e] @ NAIVE_ACTIVATIONS[activation](hidden)
        return y if down_bias is None else y + down_bias[e]

    return expert


def naive_top_k(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Softmax gates and ids of the ``top_k`` largest logits, token by token, ties to the lowest id."""
    ids, gates = [], []
    for row in logits:
        exps = torch.exp(row - row.max())
        probs = exps / exps.sum()
        chosen = row.detach().argsort(descending=True, stable=True).tolist()[:top_k]
        picked = torch.stack([probs[e] for e in chosen])
        ids.append(chosen)
        gates.append(picked / picked.sum() if renormalize else picked)
    empty = logits.new_zeros(0, top_k)
    return (torch.stack(gates) if gates else empty), torch.tensor(ids, dtype=torch.int64).view(-1, top_k)


def naive_kept(expert_ids: Tensor, num_experts: int, capacity: int, order: list[tuple[int, int]]) -> Tensor:
    """Which ``(token, k)`` keep a place where places are taken in ``order``."""
    kept = torch.zeros(expert_ids.shape, dtype=torch.bool)
    taken = [0] * num_experts
    for t, k in order:
        e = int(expert_ids[t, k])
        if taken[e] < capacity:
            kept[t, k] = True
            taken[e] += 1
    return kept
