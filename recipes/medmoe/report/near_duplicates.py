"""What a report says of evaluation images that the pretraining saw."""

from collections.abc import Mapping
from typing import Any


def near_duplicate_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each set whose near-duplicates of pretraining images were looked for.

    Args:
        results: Results by set; those of versions that looked for none lack ``near_duplicates``.
    """
    overlap = {name: result.get("near_duplicates") for name, result in results.items()}
    return [f"{name}: {one['in_words']}" for name, one in overlap.items() if one]
