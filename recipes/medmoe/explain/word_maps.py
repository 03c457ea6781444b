"""The attention of a report's words over the regions of its image, and which of the words name a finding."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moekit import Routing
from moekit.contrastive import attention_maps
from recipes.medmoe.features import ImageFeatures, TextFeatures
from recipes.medmoe.inference.released import ReleasedSession
from recipes.medmoe.inference.run import Session
from recipes.medmoe.models.adapter import cosine_maps

SMALL_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "is", "no", "of", "on", "or", "the", "to", "with", "without")
)
"""Words that a finding's name may hold without being named by them."""


class WordMaps(NamedTuple):
    """Attention maps of the words of ``B`` reports over their images. N words, L scales, h and w the aligned map.

    Attributes:
        maps: ``(B, N, h, w)``: each real word's map sums to 1 (those of a model without attention do not), others
            are 0.
        mask: ``(B, N)``, True for real words.
        scale_weights: ``(B, L, h, w)``, β of each image's expert: at each place they sum to 1 over the scales. Without
            experts L is 0.
    """

    maps: Tensor
    mask: Tensor
    scale_weights: Tensor


@torch.no_grad()
def word_maps(
    session: Session | ReleasedSession, images: ImageFeatures, text: TextFeatures, routing: Routing | None
) -> WordMaps:
    """Computes the attention of each word over the regions of its own image (the paper's Figure 3).

    It is the attention of the local loss that the run was trained with: in the batch form GLoRIA's first temperature
    multiplies, and words compete for each region first if the settings say so; in the printed form per report they do
    not, and the one temperature of that form multiplies. Of a run without a local branch it is (1 + cosine) / 2 of
    words and regions; of a released model that of
    :meth:`~recipes.medmoe.inference.released.ReleasedSession.word_maps`.

    Args:
        session: The run.
        images: Features of the images.
        text: Features of their reports, in the same order.
        routing: Which expert runs on each image; ``None`` of a model without experts.

    Raises:
        ValueError: If there are not as many texts as images.
    """
    if len(text.words) != len(images.embedding):
        raise ValueError(
            f"text must hold one report per image: expected {len(images.embedding)}, got {len(text.words)}."
        )
    if isinstance(session, ReleasedSession):
        maps = session.word_maps(images, text)
        return WordMaps(maps, text.mask, maps.new_zeros(len(maps), 0, *maps.shape[-2:]))
    if session.config.model.local_branch == "none":
        maps = cosine_maps(session.regions(images), text.words, text.mask)
        return WordMaps(maps, text.mask, maps.new_zeros(len(maps), 0, *maps.shape[-2:]))
    local = session.model.local(images, routing, need_weights=True)
    weights = local.scale_weights
    if weights is None:
        weights = local.regions.new_zeros(len(local.regions), 0, *local.regions.shape[-2:])
    height, width = local.regions.shape[-2:]
    model, by_report = session.config.model, session.config.train.local_form == "report"
    maps = attention_maps(
        local.places,
        text.words,
        text.mask,
        temperature=model.temperatures[2] if by_report else local.first_temperature(model),
        word_softmax=model.word_softmax and not by_report,
        similarity=model.attention,
        region_mask=local.region_mask,
    )
    return WordMaps(maps.unflatten(-1, (height, width)), text.mask, weights)


def normal_form(word: str) -> str:
    """Returns a word without case, punctuation and the ``s`` of a plural; empty if nothing is left."""
    letters = "".join(letter for letter in word.casefold() if letter.isalnum())
    return letters[:-1] if len(letters) > 3 and letters.endswith("s") else letters


def finding_words(finding: str, words: Sequence[str]) -> list[int]:
    """Returns the places of the words of a report that name a finding.

    Where the whole name stands in the report (``pleural effusions``), these are its words; where it does not
    (``effusion in the pleural space``), all words of the report that belong to the name. Case, punctuation and
    the plural's ``s`` do not count, and small words like ``of`` belong to no name.

    Args:
        finding: The finding's name; words are parted by white space, hyphens, underscores or slashes.
        words: The report's.

    Returns:
        Ascending places; none if the report does not name the finding.
    """
    parts = finding.translate(str.maketrans("-_/", "   ")).split()
    name = [form for part in parts if part.casefold() not in SMALL_WORDS and (form := normal_form(part))]
    forms = [(place, normal_form(word)) for place, word in enumerate(words) if word.casefold() not in SMALL_WORDS]
    forms = [(place, form) for place, form in forms if form]
    starts = [i for i in range(len(forms) - len(name) + 1) if name and [f for _, f in forms[i : i + len(name)]] == name]
    if starts:
        return sorted({place for start in starts for place, _ in forms[start : start + len(name)]})
    return [place for place, form in forms if form in name]


def distinct_words(words: Sequence[str]) -> dict[str, list[int]]:
    """Returns the words of a report that carry meaning, each with its places.

    Args:
        words: The report's.

    Returns:
        The words as they first stand there, in that order: those with a letter and without a digit that are
        longer than two letters and none of `SMALL_WORDS`.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(normal_form(word), []).append(place)
    return {
        words[at[0]]: at
        for form, at in places.items()
        if len(form) > 2 and form.isalpha() and words[at[0]].casefold() not in SMALL_WORDS
    }
