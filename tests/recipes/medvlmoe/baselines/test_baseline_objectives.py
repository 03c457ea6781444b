"""Each objective against a plain computation of its own, values and gradients."""

import math

import pytest
import torch

from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.medvlmoe.baselines.objectives import PairFeatures, hashed_texts, pair_losses, semantic_matching_loss

B, D, M, N = 4, 5, 3, 6


def tensors(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def rows(matrix):
    return [[float(value) for value in row] for row in matrix.detach()]


def cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def direction(scores, rows_first=True):
    """Mean over rows of -log softmax at the diagonal, element by element."""
    total = 0.0
    for i in range(len(scores)):
        line = [scores[i][j] if rows_first else scores[j][i] for j in range(len(scores))]
        total = total - (line[i] - torch.stack(line).exp().sum().log())
    return total / len(scores)


def cosines(image, text, scale):
    return [[scale * cosine(image[i], text[j]) for j in range(len(text))] for i in range(len(image))]


def losses(config, features, labels=None, has_text=None, text_ids=None):
    batch = len(features.image)
    return pair_losses(
        config,
        features,
        torch.zeros(batch, 2) if labels is None else labels,
        torch.ones(batch, dtype=torch.bool) if has_text is None else has_text,
        torch.arange(batch) if text_ids is None else text_ids,
    )


def assert_same(actual, expected, inputs):
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual, inputs, retain_graph=True)
    by_hand = torch.autograd.grad(expected, inputs)
    for one, other in zip(gradients, by_hand, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other)


def test_convirt_weighs_its_two_directions():
    image, text = tensors((B, D), (B, D))
    config = ContrastConfig("convirt", temperature=0.1, image_to_text_weight=0.75)
    scores = cosines(image, text, 1 / 0.1)
    expected = 0.75 * direction(scores) + 0.25 * direction(scores, rows_first=False)
    assert_same(losses(config, PairFeatures(image, text, 1 / 0.1)).total, expected, [image, text])


def test_clip_means_both_directions_and_trains_its_temperature():
    image, text = tensors((B, D), (B, D))
    log_scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64, requires_grad=True)
    config = ContrastConfig("clip", learn_temperature=True)
    scores = cosines(image, text, log_scale.exp())
    expected = (direction(scores) + direction(scores, rows_first=False)) / 2
    actual = losses(config, PairFeatures(image, text, log_scale.exp())).total
    assert_same(actual, expected, [image, text, log_scale])


def local_scores(regions, words, mask, temperatures, *, word_softmax, aggregate):
    """GLoRIA's scores of images with texts, one word and one region at a time."""
    scores = []
    for i in range(len(regions)):
        line = []
        for t in range(len(words)):
            real = [n for n in range(words.shape[1]) if mask[t, n]]
            similarity = [[(words[t, n] * regions[i, m]).sum() for m in range(regions.shape[1])] for n in real]
            if word_softmax:
                columns = [torch.stack([line[m] for line in similarity]).softmax(0) for m in range(regions.shape[1])]
                similarity = [[columns[m][k] for m in range(regions.shape[1])] for k in range(len(real))]
            exponents = []
            for k, n in enumerate(real):
                weights = torch.stack([temperatures[0] * value for value in similarity[k]]).softmax(0)
                context = sum(weights[m] * regions[i, m] for m in range(regions.shape[1]))
                exponents.append((temperatures[1] * cosine(words[t, n], context)).exp())
            total = torch.stack(exponents).sum()
            line.append((total if aggregate == "sum" else total / len(real)).log())
        scores.append([temperatures[2] * value for value in line])
    return scores


def local_tensors():
    image, text, regions, words = tensors((B, D), (B, D), (B, M, D), (B, N, D))
    mask = torch.arange(N).expand(B, N) < torch.tensor([[6], [2], [4], [3]])
    return image, text, regions, words, mask


def test_gloria_adds_global_and_local_contrast_of_both_directions():
    image, text, regions, words, mask = local_tensors()
    temperatures = (4.0, 5.0, 10.0)
    config = ContrastConfig("gloria", local_weight=0.5, local_temperatures=temperatures)
    whole = cosines(image, text, 10.0)
    local = local_scores(regions, words, mask, temperatures, word_softmax=True, aggregate="sum")
    expected = sum(direction(whole, first) + 0.5 * direction(local, first) for first in (True, False))
    actual = losses(config, PairFeatures(image, text, 10.0, regions, words, mask))
    assert_same(actual.total, expected, [image, text, regions, words])


def test_biovil_adds_means_of_global_and_local_contrast_and_masked_words():
    image, text, regions, words, mask = local_tensors()
    temperatures = (1.0, 2.0, 3.0)
    config = ContrastConfig(
        "biovil", local_weight=0.5, local_temperatures=temperatures, word_softmax=False, masked_weight=0.25
    )
    masked = words.square().mean()
    whole = cosines(image, text, 2.0)
    local = local_scores(regions, words, mask, temperatures, word_softmax=False, aggregate="mean")
    expected = (
        0.25 * masked + sum(direction(whole, first) + 0.5 * direction(local, first) for first in (True, False)) / 2
    )
    actual = losses(config, PairFeatures(image, text, 2.0, regions, words, mask, masked))
    assert_same(actual.total, expected, [image, text, regions, words])


LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, math.nan], [1.0, 0.0, 0.0], [0.0, 1.0, math.nan]])
HAS_TEXT = torch.tensor([True, True, False, True])


def by_hand_semantic(image, text, scale, labels, has_text):
    """MedCLIP's equations, element by element: findings with "none" last, unknown ones absent."""
    vectors = []
    for row in labels.tolist():
        known = [0.0 if math.isnan(value) else value for value in row]
        known.append(0.0 if any(known) else 1.0)
        length = math.sqrt(sum(value * value for value in known))
        vectors.append([value / length for value in known])
    agreement = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in vectors] for one in vectors]
    texts = [j for j in range(len(text)) if has_text[j]]
    everyone = range(len(image))

    def soft(own, others, score):
        weights = [math.exp(agreement[own][other]) for other in others]
        logits = torch.stack([score(own, other) for other in others])
        log_probs = logits - logits.exp().sum().log()
        return -sum(weight / sum(weights) * log_probs[k] for k, weight in enumerate(weights))

    to_text = sum(soft(i, texts, lambda i, j: scale * cosine(image[i], text[j])) for i in everyone) / len(image)
    to_image = sum(soft(j, everyone, lambda j, i: scale * cosine(image[i], text[j])) for j in texts) / len(texts)
    return (to_text + to_image) / 2


def test_medclip_matches_images_with_texts_as_far_as_findings_agree():
    image, text = tensors((B, D), (B, D))
    image, text = (x.detach().float().requires_grad_() for x in (image, text))
    config = ContrastConfig("medclip", learn_temperature=True)
    actual = losses(config, PairFeatures(image, text, 4.0), LABELS, HAS_TEXT).total
    assert_same(actual, by_hand_semantic(image, text, 4.0, LABELS, HAS_TEXT), [image, text])
    gradient = torch.autograd.grad(losses(config, PairFeatures(image, text, 4.0), LABELS, HAS_TEXT).total, text)[0]
    assert not gradient[2].any()  # it stands for a study without a text


def test_medclip_without_any_text_is_zero_and_finite():
    image, text = (x.detach().float().requires_grad_() for x in tensors((B, D), (B, D)))
    loss = semantic_matching_loss(image, text, LABELS, torch.zeros(B, dtype=torch.bool), 4.0)
    loss.backward()
    assert loss.item() == 0
    assert image.grad.isfinite().all()


def test_images_of_equal_texts_are_positives_of_each_other():
    image, text = tensors((B, D), (B, D))
    with torch.no_grad():
        text[2] = text[0]
    config = ContrastConfig("clip")
    alike = losses(config, PairFeatures(image, text, 3.0), text_ids=torch.tensor([7, 1, 7, 2])).total
    scores = cosines(image, text, 3.0)
    expected = 0.0
    for first in (True, False):
        for i in range(B):
            line = torch.stack([scores[i][j] if first else scores[j][i] for j in range(B)]).log_softmax(0)
            own = [0, 2] if i in (0, 2) else [i]
            expected = expected - line[own].mean() / B / 2
    torch.testing.assert_close(alike, expected)


def test_hashes_are_equal_for_equal_tokens_alone():
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 9], [5, 6, 7, 3], [6, 5, 7, 0], [5, 6, 0, 7], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    hashes = hashed_texts(ids, mask).tolist()
    assert hashes[0] == hashes[1] == hashes[5]
    assert len(set(hashes)) == 4
    wider = hashed_texts(torch.cat([ids, ids], 1), torch.cat([mask, torch.zeros_like(mask)], 1)).tolist()
    assert wider == hashes  # padding does not matter, so ranks with longer texts agree


def test_hashes_of_many_texts_differ():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (20_000, 6), generator=generator)
    distinct = len(set(map(tuple, ids.tolist())))
    assert len(set(hashed_texts(ids, torch.ones_like(ids).bool()).tolist())) == distinct


@pytest.mark.parametrize("objective", ["gloria", "biovil"])
def test_local_objectives_without_masked_words_have_no_such_loss(objective):
    image, text, regions, words, mask = local_tensors()
    result = losses(ContrastConfig(objective), PairFeatures(image, text, 2.0, regions, words, mask))
    assert result.masked_loss == 0
    assert result.local_loss > 0
