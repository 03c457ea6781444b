"""Products of tiles as exact as float32's, on tensor cores of 16-bit operands. Triton only.

A float32 number is the sum of three bfloat16 ones, a float16 number of two: bfloat16 has 8 significant bits and the
range of float32. A product of tiles is then one of each pair of parts, added up from the small ones to the large.
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
def product(a, b, acc, A_PARTS: tl.constexpr, B_PARTS: tl.constexpr, ORDER: tl.constexpr):
    """``acc + a @ b`` of operands with so many parts; without pairs of parts whose indices add up to over ``ORDER``.

    One part stands for the operand as it is, so both are of one 16-bit dtype, or that one is bfloat16.
    """
    if A_PARTS == 1 and B_PARTS == 1:
        acc = dot(a, b, acc, "ieee")
    else:
        for step in tl.static_range(ORDER + 1):
            for i in tl.static_range(A_PARTS):
                if ORDER - step - i >= 0 and ORDER - step - i < B_PARTS:
                    a_part = a if A_PARTS == 1 else part(a, i)
                    b_part = b if B_PARTS == 1 else part(b, ORDER - step - i)
                    acc = dot(a_part, b_part, acc, "ieee")
    return acc
