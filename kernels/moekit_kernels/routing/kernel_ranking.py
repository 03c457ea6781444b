"""How a tile of scores is ranked inside the routing kernels: keys, ties to the lowest id, groups. Triton only."""

import triton
import triton.language as tl

# Keys order as the scores do. The two least stand for columns beyond E and for columns that have been chosen; no
# score has a key as low: that of -inf is CLOSED.
PADDING = tl.constexpr(-2147483648)
CHOSEN = tl.constexpr(-2147483647)
CLOSED = tl.constexpr(-2139095041)
ABOVE_ALL = tl.constexpr(2147483647)


@triton.jit
def sort_key(score):
    """An int32 that orders as the float32 ``score``: 0.0 equals -0.0, NaN is above everything."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ ABOVE_ALL, bits)
    return tl.where(score != score, ABOVE_ALL, key)


@triton.jit
def first_of_largest(key, cols, EP: tl.constexpr):
    """``(ROWS, 1)``, the lowest column that holds the largest key of each row."""
    best = tl.max(key, axis=1)[:, None]
    return tl.min(tl.where(key == best, cols, EP), axis=1)[:, None]


@triton.jit
def group_scores_by_shape(score, EP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """In every column the sum of the two largest scores of its group; powers of two only."""
    groups = tl.reshape(score, (ROWS, GROUPS, SIZE))
    place = tl.arange(0, SIZE)[None, None, :]
    best = tl.max(groups, axis=2)[:, :, None]
    first = tl.min(tl.where(groups == best, place, SIZE), axis=2)[:, :, None]
    second = tl.max(tl.where(place == first, -float("inf"), groups), axis=2)[:, :, None]
    return tl.reshape(tl.broadcast_to(best + second, (ROWS, GROUPS, SIZE)), (ROWS, EP))


@triton.jit
def group_scores_by_mask(score, cols, EP: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """The same for groups of any size of at least 2."""
    group_score = score
    for group in range(GROUPS):
        member = (cols // SIZE) == group
        own = tl.where(member, score, -float("inf"))
        best = tl.max(own, axis=1)[:, None]
        first = tl.min(tl.where(member & (own == best), cols, EP), axis=1)[:, None]
        second = tl.max(tl.where(cols == first, -float("inf"), own), axis=1)[:, None]
        group_score = tl.where(member, best + second, group_score)
    return group_score


@triton.jit
def limit_to_groups(
    key,
    score,
    cols,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_SCORE: tl.constexpr,
):
    """Gives the columns outside the best ``TOP_GROUPS`` groups the key of -inf."""
    SIZE: tl.constexpr = E // GROUPS
    if SIZE == 1 or GROUP_SCORE == "max":
        group_key = key  # the largest of all is in the best group
    elif E == EP and (SIZE & (SIZE - 1)) == 0:
        group_key = sort_key(group_scores_by_shape(score, EP, ROWS, GROUPS, SIZE))
    else:
        group_key = tl.where(cols < E, sort_key(group_scores_by_mask(score, cols, EP, GROUPS, SIZE)), PADDING)
    for _ in range(TOP_GROUPS):
        best = first_of_largest(group_key, cols, EP) // SIZE
        group_key = tl.where((cols // SIZE) == best, CHOSEN, group_key)
    return tl.where((cols < E) & (group_key != CHOSEN), CLOSED, key)
