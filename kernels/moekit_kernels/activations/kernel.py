"""The activations of the package in Triton: each function, and with its derivative or derivatives.

Tiles come in float32. Constants are the last parameters.
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import fast_sigmoid, tanh


@triton.jit
def relu(x):
    """``max(x, 0)``, NaN where ``x`` is."""
    return tl.where(x > 0, x, tl.where(x != x, x, 0.0))


@triton.jit
def relu_with_derivatives(x):
    """:func:`relu` and its derivative, 0 at 0."""
    return relu(x), tl.where(x > 0, 1.0, 0.0)


@triton.jit
def relu2(x):
    """``max(x, 0)^2``."""
    positive = relu(x)
    return positive * positive


@triton.jit
def relu2_with_derivatives(x):
    """:func:`relu2` and its derivative."""
    positive = relu(x)
    return positive * positive, 2.0 * positive


@triton.jit
def silu(x):
    """``x sigmoid(x)``."""
    return x * fast_sigmoid(x)


@triton.jit
def silu_with_derivatives(x):
    """:func:`silu` and its derivative."""
    s = fast_sigmoid(x)
    value = x * s
    return value, s + value * (1.0 - s)


@triton.jit
def gelu(x):
    """``x`` times the normal distribution function at ``x``, exact."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_with_derivatives(x):
    """:func:`gelu` and its derivative."""
    cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def gelu_tanh(x):
    """``x (1 + tanh(u)) / 2``, ``u = sqrt(2 / pi) (x + 0.044715 x^3)``: ``x sigmoid(2 u)``."""
    return x * fast_sigmoid(x * (1.5957691216057308 + 0.07135481282731724 * x * x))


@triton.jit
def gelu_tanh_with_derivatives(x):
    """:func:`gelu_tanh` and its derivative."""
    square = x * x
    s = fast_sigmoid(x * (1.5957691216057308 + 0.07135481282731724 * square))
    value = x * s
    return value, s + value * (1.0 - s) * (1.5957691216057308 + 0.21406443848195172 * square)


@triton.jit
def situ(x, BETA: tl.constexpr):
    """``BETA tanh(x / BETA) sigmoid(x)``."""
    return BETA * tanh(x * (1.0 / BETA)) * fast_sigmoid(x)


@triton.jit
def situ_with_derivatives(x, BETA: tl.constexpr):
    """:func:`situ` and its derivative."""
    t = tanh(x * (1.0 / BETA))
    s = fast_sigmoid(x)
    value = BETA * t * s
    return value, s * (1.0 - t * t) + value * (1.0 - s)


@triton.jit
def situ_glu(gate, value, BETA: tl.constexpr, VALUE_BETA: tl.constexpr):
    """``situ(gate) VALUE_BETA tanh(value / VALUE_BETA)``."""
    return situ(gate, BETA) * (VALUE_BETA * tanh(value * (1.0 / VALUE_BETA)))


@triton.jit
def situ_glu_with_derivatives(gate, value, BETA: tl.constexpr, VALUE_BETA: tl.constexpr):
    """:func:`situ_glu` and its derivatives by gate and value."""
    a, slope = situ_with_derivatives(gate, BETA)
    t = tanh(value * (1.0 / VALUE_BETA))
    bounded = VALUE_BETA * t
    return a * bounded, slope * bounded, a * (1.0 - t * t)


@triton.jit
def _clamp(x, LEAST: tl.constexpr, MOST: tl.constexpr):
    """``x`` within the limits, NaN where ``x`` is."""
    x = tl.minimum(x, MOST, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(x, LEAST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamped_swiglu(gate, value, ALPHA: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr):
    """``(v + OFFSET) g sigmoid(ALPHA g)`` with the gate ``g`` up to ``LIMIT``, ``v`` in ``[-LIMIT, LIMIT]``."""
    g = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return (_clamp(value, -LIMIT, LIMIT) + OFFSET) * (g * fast_sigmoid(ALPHA * g))


@triton.jit
def clamped_swiglu_with_derivatives(gate, value, ALPHA: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr):
    """:func:`clamped_swiglu` and its derivatives by gate and value: zero at the limits, as those of torch.clamp."""
    # Of what is clamped, so that what was loaded needs no registers any more.
    g = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    v = _clamp(value, -LIMIT, LIMIT)
    s = fast_sigmoid(ALPHA * g)
    swish = g * s
    by_gate = (v + OFFSET) * (s + ALPHA * swish * (1.0 - s))
    return (v + OFFSET) * swish, tl.where(g < LIMIT, by_gate, 0.0), tl.where(tl.abs(v) < LIMIT, swish, 0.0)
