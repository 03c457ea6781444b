"""Draws a train / val / test split that keeps every group (a patient, a clip) in one piece."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from recipes.data.arguments import argument, remedy
from recipes.data.studies import SPLITS


def draw_splits(
    groups: Sequence[str], *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> list[str]:
    """Gives every study a split such that no group crosses.

    The groups are shuffled; the first three open one split each, so that none stays empty, and every further
    group goes to the split that is furthest below its share of the studies. A split therefore exceeds its
    share by at most the size of the largest group. Labels play no part.

    Args:
        groups: The group of each of the ``N`` studies. Their order does not matter: equal counts of equal
            groups are split alike.
        fractions: Shares of train, val and test; positive, adding up to 1.
        seed: Of the shuffle.

    Returns:
        ``N`` names out of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        ValueError: If ``fractions`` is not three positive numbers that add up to 1, or if there are fewer
            than three groups.
    """
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(
            f"{argument('fractions')} must be three positive numbers (train, val, test) that add up to 1, got "
            f"{fractions}"
        )
    sizes = Counter(groups)
    if len(sizes) < 3:
        raise ValueError(
            f"groups: at least 3 are needed to draw train, val and test, got {len(sizes)}. "
            "Add studies of other groups" + remedy(", or name a column that holds the split ({split_column})") + "."
        )
    names = sorted(sizes)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    shortfall = np.array(fractions) * len(groups)
    split_of: dict[str, str] = {}
    for position, group in enumerate(shuffled):
        chosen = position if position < 3 else int(shortfall.argmax())
        shortfall[chosen] -= sizes[group]
        split_of[group] = SPLITS[chosen]
    return [split_of[group] for group in groups]


def draw_validation(groups: Sequence[str], *, share: float, seed: int = 0) -> list[bool]:
    """Marks the studies of some groups for validation: shuffled groups, until they hold the share of the studies.

    Args:
        groups: The group of each study.
        share: Between 0 and 1.
        seed: Of the shuffle.

    Returns:
        Whether each study is for validation. At least one group is and one is not, if there are two.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    chosen: set[str] = set()
    count = 0
    for place in np.random.default_rng(seed).permutation(len(names))[: len(names) - 1].tolist():
        if count >= share * len(groups) - 1e-6:
            break
        chosen.add(names[place])
        count += sizes[names[place]]
    return [group in chosen for group in groups]
