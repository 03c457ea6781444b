"""Some studies of a split, as a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.data.image_files import ImageFiles
from recipes.data.studies import Study, StudySplit


def some_rows(split: StudySplit, rows: Sequence[int]) -> StudySplit:
    """Returns a split of some rows of another one, in the order of ``rows``; images are read when they are needed.

    Args:
        split: The studies; of what a split may have besides, ``modalities`` and ``has_image`` are kept.
        rows: Which of them.
    """
    return split.take(rows) if isinstance(split, ImageFiles) else _SomeRows(split, rows)


class _SomeRows:
    def __init__(self, split: StudySplit, rows: Sequence[int]) -> None:
        self._split, self._rows = split, list(rows)
        self.ids, self.groups, self.texts = (self._pick(each) for each in (split.ids, split.groups, split.texts))
        self.labels = np.asarray(split.labels)[self._rows]
        for name in ("modalities", "has_image"):
            if hasattr(split, name):
                setattr(self, name, self._pick(getattr(split, name)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Study:
        return self._split[self._rows[index]]

    def _pick(self, values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in self._rows]
