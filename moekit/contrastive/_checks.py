"""Checks of the arguments of the contrastive functions; they read shapes, dtypes and devices only."""

import math

from torch import Tensor

from moekit.checks import (
    check_floating,
    check_integer,
    check_mask,
    check_rank,
    check_same_device,
    check_same_dtype,
    check_width,
)


def check_scale(name: str, value: float | Tensor) -> None:
    """Raises ``ValueError`` unless ``value`` is positive and finite, or a tensor of one number, which is not read."""
    if isinstance(value, Tensor):
        check_floating(name, value)
        if value.ndim:
            raise ValueError(f"{name} must be a tensor of no dimension or a number, got shape {tuple(value.shape)}.")
        return
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_scales(name: str, values: tuple[float | Tensor, ...], meanings: str) -> None:
    """Raises ``ValueError`` unless there is one positive number for each of ``meanings``, split at commas."""
    expected = meanings.count(",") + 1
    if len(values) != expected:
        raise ValueError(f"{name} must hold {expected} numbers ({meanings}), got {len(values)}: {tuple(values)}.")
    for value in values:
        check_scale(name, value)


def check_text_ids(text_ids: Tensor, batch: int, device_of: Tensor, device_name: str) -> None:
    """Raises ``ValueError`` unless ``text_ids`` holds one integer per pair."""
    check_integer("text_ids", text_ids)
    if tuple(text_ids.shape) != (batch,):
        raise ValueError(f"text_ids must hold one id per pair, shape ({batch},), got shape {tuple(text_ids.shape)}.")
    check_same_device("text_ids", text_ids, device_name, device_of)


def check_regions_and_words(regions: Tensor, words: Tensor, word_mask: Tensor, words_letters: str) -> None:
    """Raises ``ValueError`` unless regions, words and mask fit each other."""
    check_rank("regions", regions, 3, "B, M, D")
    check_rank("words", words, 3, words_letters)
    check_floating("regions", regions)
    check_floating("words", words)
    if regions.shape[1] == 0:
        raise ValueError(f"regions must hold at least one region per image, got shape {tuple(regions.shape)}.")
    check_width("words", words, regions.shape[2])
    check_mask("word_mask", word_mask, words.shape[:2])
    check_same_device("words", words, "regions", regions)
    check_same_device("word_mask", word_mask, "regions", regions)
    check_same_dtype("words", words, "regions", regions)


def check_pairs(regions: Tensor, words: Tensor) -> None:
    """Raises ``ValueError`` unless there are as many texts as images."""
    if words.shape[0] != regions.shape[0]:
        raise ValueError(
            f"words must hold one text per image, {regions.shape[0]} as in regions, got {words.shape[0]}. "
            "local_scores compares any number of texts with any number of images."
        )


def check_region_mask(region_mask: Tensor | None, regions: Tensor) -> None:
    """Raises ``ValueError`` unless the mask, where there is one, fits the regions."""
    if region_mask is not None:
        check_mask("region_mask", region_mask, regions.shape[:2])
        check_same_device("region_mask", region_mask, "regions", regions)
