"""Products of tiles as exact as float32's, on tensor cores of 16-bit operands. Triton only.

A float32 number is the sum of three bfloat16 ones, a float16 number of two: bfloat16 has 8 significant bits and the
range of float32. A product of tiles is then one of each pair of parts, added up from the small ones to the large.

Tensor cores do not round sums, they cut off what float32 does not hold, and always towards zero: over a depth of 2048
the errors add up to 1e-6 of ``|a| @ |b|`` (measured on an H200), where float32 arithmetic has 1e-7. So an accumulator
of tensor cores takes the products of one step alone, and the steps are added up by float32 arithmetic
(:func:`minus_product`).
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import dot


@triton.jit
def leading(x):
    """The first 8 significant bits of float32 numbers, rounded towards zero, so that nothing overflows."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def part(x, INDEX: tl.constexpr):
    """One bfloat16 part of ``x``; the parts 0, 1 and 2 of a float32 number add up to it."""
    rest = x.to(tl.float32)
    for _ in tl.static_range(INDEX):
        rest -= leading(rest)
    return leading(rest).to(tl.bfloat16)


@triton.jit
def minus_product(a, b, acc, A_PARTS: tl.constexpr, B_PARTS: tl.constexpr, ORDER: tl.constexpr):
    """``acc - a @ b`` of operands with so many parts; without pairs of parts whose indices add up to over ``ORDER``.

    One part stands for the operand as it is, so both are of one 16-bit dtype, or that one is bfloat16. A difference,
    because the compiler would make ``acc + a @ b`` one product that goes on from ``acc``.
    """
    total = tl.zeros(acc.shape, tl.float32)
    if A_PARTS == 1 and B_PARTS == 1:
        total = dot(a, b, total, "ieee")
    else:
        for step in tl.static_range(ORDER + 1):
            for i in tl.static_range(A_PARTS):
                if ORDER - step - i >= 0 and ORDER - step - i < B_PARTS:
                    a_part = a if A_PARTS == 1 else part(a, i)
                    b_part = b if B_PARTS == 1 else part(b, ORDER - step - i)
                    total = dot(a_part, b_part, total, "ieee")
    return acc - total
