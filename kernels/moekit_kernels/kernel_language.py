"""Products and activations that several kernels share. Triton only."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from moekit_kernels.availability import interpreting

# Triton's interpreter multiplies the bits of bfloat16 wrongly; there, operands are widened.
INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; ``PRECISION`` ("ieee", "tf32") matters for float32 operands only."""
    if INTERPRETING:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def prefetch(pointers):
    """Brings what lies at ``pointers`` to the L2 cache, some time soon. NVIDIA only; nothing when interpreted."""
    if not INTERPRETING:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def arrives_last(counter, num_programs):
    """Whether all ``num_programs`` programs that share ``counter`` have come here; only the last one gets True.

    What the others stored before is visible to it, through loads with ``cache_modifier=".cg"``. The counter, which
    starts at zero (:mod:`moekit_kernels.arrivals`), is zero again afterwards.
    """
    tl.debug_barrier()  # the stores of all threads come before the one that counts
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_programs - 1
    if last:
        tl.atomic_xchg(counter, 0)
    return last


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``, exact in both tails."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def fast_sigmoid(x):
    """:func:`sigmoid` to some 2 units in the last place of float32, by the processor's own approximations.

    They give zero below the normal numbers, and so need no instructions that scale: six fewer for each number.
    """
    if INTERPRETING:
        return sigmoid(x)
    return libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-x))


@triton.jit
def act(x, NAME: tl.constexpr):
    """The scalar function of an activation, in float32. ``NAME``: none, relu, silu, gelu (exact, by erf)."""
    if NAME == "relu":
        return tl.where(x > 0, x, tl.where(x != x, x, 0.0))
    elif NAME == "silu":
        return x * fast_sigmoid(x)
    elif NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(NAME == "none")
        return x


@triton.jit
def act_and_derivative(x, NAME: tl.constexpr):
    """``act(x)`` and its derivative at ``x``, in float32."""
    if NAME == "relu":
        return act(x, "relu"), tl.where(x > 0, 1.0, 0.0)
    elif NAME == "silu":
        s = fast_sigmoid(x)
        value = x * s
        return value, s + value * (1.0 - s)
    elif NAME == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        tl.static_assert(NAME == "none")
        return x, tl.full(x.shape, 1.0, tl.float32)
