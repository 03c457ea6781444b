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
def tanh(x):
    """The hyperbolic tangent, to some 4 units in the last place of float32 (libdevice's is not interpreted)."""
    size = tl.abs(x)
    far = 1.0 - 2.0 * fast_sigmoid(-2.0 * size)
    square = x * x
    # Taylor's series, where the difference above would cancel.
    tail = 0.13333333333333333 + square * (-0.05396825396825397 + square * 0.021869488536155203)
    near = x + x * square * (-0.3333333333333333 + square * tail)
    return tl.where(size < 0.25, near, tl.where(x < 0, -far, far))


# An ACTIVATION below is "none", or a moekit_kernels.activations.TritonActivation. Where that is the function of a gate
# alone, the value is multiplied; kernels call the two steps in turn, so that the value is loaded or rounded in between.


@triton.jit
def act(x, ACTIVATION: tl.constexpr):
    """The function of one number, in float32; ``x`` itself where ACTIVATION is a function of gate and value."""
    if ACTIVATION == "none":  # noqa: SIM114 ("none" has no attribute takes_value)
        return x
    elif ACTIVATION.takes_value:
        return x
    else:
        return ACTIVATION.function(x, *ACTIVATION.constants)


@triton.jit
def act_with_value(gate, value, ACTIVATION: tl.constexpr):
    """A gated activation, of :func:`act` of the gate and of the value, in float32."""
    if ACTIVATION.takes_value:
        return ACTIVATION.function(gate, value, *ACTIVATION.constants)
    else:
        return gate * value


@triton.jit
def act_and_slope(x, ACTIVATION: tl.constexpr):
    """:func:`act` and its derivative at ``x``, in float32; ``x`` twice where it is ``x`` itself."""
    if ACTIVATION.takes_value:
        return x, x
    else:
        return ACTIVATION.with_derivatives(x, *ACTIVATION.constants)
