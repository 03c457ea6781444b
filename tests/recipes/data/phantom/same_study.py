"""Compares two studies bit by bit."""

import numpy as np

from recipes.data.studies import Study


def same(one: Study, other: Study) -> bool:
    return (
        (one.id, one.group, one.text, one.boxes, one.modality)
        == (other.id, other.group, other.text, other.boxes, other.modality)
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.labels, other.labels)
    )
