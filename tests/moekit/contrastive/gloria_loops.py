"""GLoRIA's formulas one number after another: no batching, no masks, no library function beyond exp and log.

Reports come without their padding. Tensors of no dimension hold the numbers, so autograd gives gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def softmax(values: Sequence[Tensor]) -> list[Tensor]:
    exponentials = [value.exp() for value in values]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((x * y for x, y in zip(a, b, strict=True)), torch.zeros((), dtype=a.dtype))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())


def attention(regions: Tensor, words: Tensor, temp1: float, word_softmax: bool = True) -> list[list[Tensor]]:
    """``[word][region]``."""
    by_region = [[dot(word, region) for word in words] for region in regions]
    if word_softmax:
        by_region = [softmax(values) for values in by_region]
    return [softmax([temp1 * values[n] for values in by_region]) for n in range(len(words))]


def score(
    regions: Tensor, words: Tensor, temp1: float, temp2: float, aggregation: str, word_softmax: bool = True
) -> Tensor:
    """Of one image with one report."""
    weights = attention(regions, words, temp1, word_softmax)
    similarities = []
    for n, word in enumerate(words):
        context = sum(weight * region for weight, region in zip(weights[n], regions, strict=True))
        similarities.append((temp2 * cosine(word, context)).exp())
    if aggregation == "max":
        return max(similarities).log()
    total = sum(similarities)
    return (total / len(words) if aggregation == "mean" else total).log()


def cross_entropy(rows: Sequence[Sequence[Tensor]], positives: Sequence[Sequence[int]]) -> Tensor:
    """Mean over rows of the mean over positives of minus the log probability."""
    losses = []
    for row, columns in zip(rows, positives, strict=True):
        probabilities = softmax(row)
        losses.append(-sum(probabilities[i].log() for i in columns) / len(columns))
    return sum(losses) / len(losses)


def both_ways(scores: Sequence[Sequence[Tensor]], texts: Sequence[int]) -> Tensor:
    """Mean of both directions; equal numbers mark equal texts."""
    positives = [[j for j, other in enumerate(texts) if other == text] for text in texts]
    columns = [list(column) for column in zip(*scores, strict=True)]
    return (cross_entropy(scores, positives) + cross_entropy(columns, positives)) / 2


def local_loss(
    regions: Tensor,
    reports: Sequence[Tensor],
    temperatures: tuple[float, float, float],
    aggregation: str,
    texts: Sequence[int],
    word_softmax: bool = True,
) -> Tensor:
    temp1, temp2, temp3 = temperatures
    scores = [
        [temp3 * score(image, report, temp1, temp2, aggregation, word_softmax) for report in reports]
        for image in regions
    ]
    return both_ways(scores, texts)


def report_loss(regions: Tensor, reports: Sequence[Tensor], temperature: float, aggregation: str) -> Tensor:
    """MedMoE's printed form: words of a report against each other."""
    per_report = []
    for image, report in zip(regions, reports, strict=True):
        weights = attention(image, report, 1 / temperature, word_softmax=False)
        loss = torch.zeros((), dtype=regions.dtype)
        for i in range(len(report)):
            context = sum(weight * region for weight, region in zip(weights[i], image, strict=True))
            logits = [cosine(context, word) / temperature for word in report]
            loss = loss - softmax(logits)[i].log()
        per_report.append(loss / len(report) if aggregation == "mean" else loss)
    return sum(per_report) / len(per_report)


def global_loss(image: Tensor, text: Tensor, scale: float, texts: Sequence[int]) -> Tensor:
    return both_ways([[scale * cosine(v, t) for t in text] for v in image], texts)
