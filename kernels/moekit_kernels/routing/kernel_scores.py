"""Scores of whole rows of logits inside the routing kernels, and the rows that count. Triton only."""

import triton
import triton.language as tl

# Below, softplus(x) counts as exp(x): 1.5e-7 of it too much at most.
LOW = tl.constexpr(-15.0)


@triton.jit
def softmax(z, where):
    """Softmax of each row over the columns ``where``, 0 in the others; the maximum, the log-sum-exp past it."""
    z = tl.where(where, z, -float("inf"))
    largest = tl.max(z, axis=1)[:, None]
    exps = tl.exp(z - largest)
    total = tl.sum(exps, axis=1)[:, None]
    return exps * (1.0 / total), largest, tl.log(total)


@triton.jit
def log_sigmoid(x):
    """``log(sigmoid(x))`` without overflow; its absolute error is that of one rounding."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` by an exponential that cannot overflow."""
    exps = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, exps) / (1.0 + exps)


@triton.jit
def softplus(x):
    """``log(1 + exp(x))`` to a few roundings of itself, as 2 artanh(e / (2 + e)) with ``e = exp(-abs(x))``."""
    exps = tl.exp(-tl.abs(x))
    ratio = exps / (2.0 + exps)
    square = ratio * ratio
    series = 1.0 / 11.0 + square * (1.0 / 13.0)
    series = 1.0 / 7.0 + square * (1.0 / 9.0 + square * series)
    series = 1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * series))
    return tl.maximum(x, 0.0) + 2.0 * ratio * series


@triton.jit
def score_of(x, SCORING: tl.constexpr):
    """Score of a logit, for the scorings in which it is a function of the logit alone."""
    if SCORING == "sigmoid":
        score = sigmoid(x)
    else:
        root = tl.sqrt(softplus(tl.maximum(x, LOW)))
        score = tl.where(x < LOW, tl.exp(0.5 * tl.minimum(x, LOW)), root)
    return score


@triton.jit
def log_score(x, SCORING: tl.constexpr):
    """Logarithm of the score; the logit itself where scores are a softmax of logits."""
    if SCORING == "sigmoid":
        z = log_sigmoid(x)
    elif SCORING == "sqrt_softplus":
        z = 0.5 * tl.where(x < LOW, x, tl.log(softplus(tl.maximum(x, LOW))))
    else:
        z = x
    return z


@triton.jit
def log_score_slope(x, SCORING: tl.constexpr):
    """Derivative of :func:`log_score` where it is no softmax."""
    if SCORING == "sigmoid":
        slope = sigmoid(-x)
    else:
        slope = 0.5 * tl.where(x < LOW, 1.0, sigmoid(x) / softplus(tl.maximum(x, LOW)))
    return slope


@triton.jit
def keep_finite(x):
    """Rows that are not all finite set to zero; ``(ROWS, 1)`` rows kept."""
    finite = (tl.abs(x) < float("inf")).to(tl.int32)
    valid = tl.min(finite, axis=1)[:, None] > 0
    return tl.where(valid, x, 0.0), valid


@triton.jit
def load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E: tl.constexpr):
    """Some rows of logits in float32, 0 outside."""
    inside = (rows < num_tokens)[:, None] & (cols < E)
    places = rows.to(tl.int64)[:, None] * stride_t + cols.to(tl.int64) * stride_e
    return tl.load(logits + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_counted(mask, rows, num_tokens, stride_mask):
    """``(ROWS, 1)``: real rows that are in the mask."""
    inside = rows < num_tokens
    if mask is not None:
        inside = inside & (tl.load(mask + rows.to(tl.int64) * stride_mask, mask=inside, other=0) != 0)
    return inside[:, None]
