"""Kernels of the limit by mass: one program has the gates of some whole tokens. Triton only."""

import triton
import triton.language as tl


@triton.jit
def _load(gates, rows, places, inside, stride_t, stride_k):
    """Gates of some tokens in float32; zeros for a token that has a NaN, and ``(ROWS, 1)`` tokens that have none."""
    at = gates + rows.to(tl.int64)[:, None] * stride_t + places[None, :].to(tl.int64) * stride_k
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    valid = tl.max((gate != gate).to(tl.int32), axis=1)[:, None] == 0
    return tl.where(valid, gate, 0.0), valid


@triton.jit(do_not_specialize=["num_tokens", "mass"])
def mass_fwd_kernel(
    gates,
    limited,
    kept,
    mass,
    num_tokens,
    stride_t,
    stride_k,
    TOP_K: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """Keeps a slot where the gates before it add up to less than ``mass``."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, KP)
    inside = (rows < num_tokens)[:, None] & (places < TOP_K)[None, :]
    gate, valid = _load(gates, rows, places, inside, stride_t, stride_k)
    is_kept = inside & valid & (tl.cumsum(gate, 1) - gate < mass)
    value = tl.where(is_kept, gate, 0.0)
    if RENORMALIZE:
        total = tl.sum(value, axis=1)[:, None]
        value = value / tl.where(total > 0.0, total, 1.0)
    here = rows.to(tl.int64)[:, None] * TOP_K + places[None, :]
    tl.store(limited + here, tl.where(valid, value, float("nan")), mask=inside)
    tl.store(kept + here, is_kept, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def mass_bwd_kernel(
    grad,
    gates,
    kept,
    d_gates,
    num_tokens,
    stride_grad_t,
    stride_grad_k,
    stride_t,
    stride_k,
    TOP_K: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """The gradient of the gates: that of the slots that are kept, through their sum where they were divided by it."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, KP)
    inside = (rows < num_tokens)[:, None] & (places < TOP_K)[None, :]
    here = rows.to(tl.int64)[:, None] * TOP_K + places[None, :]
    is_kept = tl.load(kept + here, mask=inside, other=0) != 0
    at = grad + rows.to(tl.int64)[:, None] * stride_grad_t + places[None, :].to(tl.int64) * stride_grad_k
    value = tl.load(at, mask=is_kept, other=0.0).to(tl.float32)
    if RENORMALIZE:
        gate, _ = _load(gates, rows, places, inside, stride_t, stride_k)
        gate = tl.where(is_kept, gate, 0.0)
        total = tl.sum(gate, axis=1)[:, None]
        total = tl.where(total > 0.0, total, 1.0)
        value = (value - tl.sum(value * gate, axis=1)[:, None] / total) / total
    tl.store(d_gates + here, tl.where(is_kept, value, 0.0), mask=inside)
