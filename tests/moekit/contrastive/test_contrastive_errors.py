"""Every mistake in the arguments of the local functions has its message."""

import math
from typing import Any

import pytest
import torch

from moekit import local_contrastive_loss, word_alignment_loss
from moekit.contrastive import attention_maps, local_scores

META = torch.ones(2, 3, 4, device="meta")
SHARED = [
    ({"regions": torch.ones(2, 4)}, r"regions must have shape \(B, M, D\), got shape \(2, 4\)"),
    ({"words": torch.ones(2, 4)}, r"words must have shape \(., N, D\), got shape \(2, 4\)"),
    ({"regions": torch.ones(2, 5, 4).long()}, "regions must be of a floating dtype"),
    ({"words": torch.ones(2, 3, 4).long()}, "words must be of a floating dtype"),
    ({"regions": torch.ones(2, 0, 4)}, r"regions must hold at least one region per image, got shape \(2, 0, 4\)"),
    ({"words": torch.ones(2, 3, 5)}, r"words must have a last dimension of 4, got shape \(2, 3, 5\)"),
    ({"word_mask": torch.ones(2, 3)}, r"word_mask must be a bool tensor of shape \(2, 3\)"),
    ({"words": META}, "words must be on the device of regions"),
    ({"word_mask": META[..., 0] > 0}, "word_mask must be on the device of regions"),
    ({"words": torch.ones(2, 3, 4).double()}, "words must have the dtype of regions, torch.float32"),
]
PAIRS = [({"words": torch.ones(1, 3, 4), "word_mask": torch.ones(1, 3).bool()}, "words must hold one text per image")]


def call(function: Any, change: dict) -> None:
    arguments = {"regions": torch.ones(2, 5, 4), "words": torch.ones(2, 3, 4), "word_mask": torch.ones(2, 3).bool()}
    function(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *SHARED,
        ({"temperatures": (4.0, 5.0, 10.0)}, r"temperatures must hold 2 numbers \(attention, words\), got 3"),
        ({"temperatures": (4.0, 0.0)}, "temperatures must be positive and finite, got 0.0"),
        ({"aggregation": "median"}, "aggregation must be one of 'mean', 'sum', 'max', got 'median'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_scores(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(local_scores, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [*SHARED, *PAIRS, ({"temperature": math.nan}, "temperature must be positive and finite, got nan")],
)
def test_attention(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(attention_maps, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *SHARED,
        *PAIRS,
        ({"aggregation": "max"}, "aggregation must be one of 'mean', 'sum', got 'max'"),
        ({"temperatures": (4.0, 5.0)}, r"temperatures must hold 3 numbers \(attention, words, scores\), got 2"),
        ({"text_ids": torch.ones(3).long()}, r"text_ids must hold one id per pair, shape \(2,\), got shape \(3,\)"),
        ({"text_ids": torch.ones(2, device="meta").long()}, "text_ids must be on the device of regions"),
        ({"group": "any"}, "group must be left out without gather=True"),
    ],
)
def test_local_loss(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(local_contrastive_loss, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *SHARED,
        *PAIRS,
        ({"aggregation": "max"}, "aggregation must be one of 'mean', 'sum', got 'max'"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1.0"),
    ],
)
def test_word_alignment(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(word_alignment_loss, {"temperature": 0.1} | change)
