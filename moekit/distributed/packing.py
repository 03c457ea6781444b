"""Items of different weights in bins of equal numbers, so that the heaviest bin is light."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence


def heaviest(weights: Sequence[float]) -> list[int]:
    """Returns the items by weight, the heaviest first, and by number."""
    return sorted(range(len(weights)), key=lambda item: (-weights[item], item))


def deal(items: Sequence[int], weights: Sequence[float], limits: Mapping[int, int], bins: int) -> list[list[int]]:
    """Deals items to bins in rounds of one for each bin: each to the lightest that has had none in the round.

    Copies of an item must follow each other: those of one round go to different bins, and those that are left for the
    next come first there, where all bins are free. So there always is a bin under the limit of
    ``ceil(copies / bins)``.

    Args:
        items: Items, some several times, a multiple of ``bins`` in number.
        weights: Of each item.
        limits: How often a bin may have each item.
        bins: Number of bins.

    Returns:
        The items of each bin.
    """
    dealt: list[list[int]] = [[] for _ in range(bins)]
    loads = [0.0] * bins
    for start in range(0, len(items), bins):
        free = set(range(bins))
        for item in items[start : start + bins]:
            allowed = (each for each in free if dealt[each].count(item) < limits[item])
            chosen = min(allowed, key=lambda each: (loads[each], each))
            free.remove(chosen)
            dealt[chosen].append(item)
            loads[chosen] += weights[item]
    return dealt


def exchange_until_even(bins: list[list[int]], weights: Sequence[float], limits: Mapping[int, int]) -> None:
    """Exchanges items of the heaviest bin with lighter ones of other bins, in place, until none makes both lighter.

    Then the heaviest and the lightest bin differ by at most the weight of one item. They have as many items. In any
    pairing of those that they do not share, some item of the heavier outweighs its partner; as no exchange helps, it
    does so by the whole difference of the bins, or more, and it cannot by more than it weighs itself.

    Args:
        bins: The items of each bin.
        weights: Of each item.
        limits: How often a bin may have each item.
    """
    loads = [math.fsum(weights[item] for item in each) for each in bins]
    counts = [Counter(each) for each in bins]
    smallest = 1e-12 * max(loads, default=0.0)
    while True:
        top = max(range(len(bins)), key=lambda each: (loads[each], -each))
        for other in sorted(range(len(bins)), key=lambda each: (loads[each], each)):
            pair = _best_exchange(counts[top], counts[other], weights, limits, loads[top] - loads[other], smallest)
            if pair is not None:
                break
        else:
            return
        for here, out, into in ((top, pair[0], pair[1]), (other, pair[1], pair[0])):
            bins[here][bins[here].index(out)] = into
            counts[here].subtract({out: 1})
            counts[here][into] += 1
            loads[here] = math.fsum(weights[item] for item in bins[here])


def likest(new: Sequence[Counter[int]], old: Sequence[Counter[int]]) -> list[int]:
    """Returns for each of the old bins a new one, each once: those with the most items in common first."""
    common = [
        (-(theirs & own).total(), place, index) for place, theirs in enumerate(old) for index, own in enumerate(new)
    ]
    chosen = [-1] * len(old)
    for _, place, index in sorted(common):
        if chosen[place] < 0 and index not in chosen:
            chosen[place] = index
    return chosen


def _best_exchange(
    heavy: Counter[int],
    light: Counter[int],
    weights: Sequence[float],
    limits: Mapping[int, int],
    gap: float,
    smallest: float,
) -> tuple[int, int] | None:
    """Returns the items of two bins whose exchange makes the heavier of both lightest; None if all make it heavier."""
    out = [item for item, count in heavy.items() if count and light[item] < limits[item]]
    into = [item for item, count in light.items() if count and heavy[item] < limits[item]]
    pairs = ((abs(weights[a] - weights[b] - gap / 2), a, b) for a in out for b in into)
    distance, a, b = min(pairs, default=(math.inf, 0, 0))
    return (a, b) if distance < gap / 2 - smallest else None
