"""GradCache: gradients are those of the large batch, whatever the model draws or counts."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from moekit import global_contrastive_loss
from recipes.shared.grad_cache import cached_backward


class Towers(nn.Module):
    """Two encoders and a learned scale, with dropout or batch norm."""

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Dropout(dropout))
        self.text = nn.Linear(6, 8)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image, text):
        return {"pair": (self.image(image), self.text(text)), "scale": self.scale.exp(), "ids": text[:, 0] > 0}


def made(fabric, **options):
    torch.manual_seed(0)
    return fabric.setup_module(Towers(**options))


def data(rows=12):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 6, generator=generator) for _ in range(2)]


def loss_of(features):
    image, text = (torch.cat([one["pair"][side] for one in features]) for side in (0, 1))
    assert all(one["ids"].dtype == torch.bool for one in features)
    return global_contrastive_loss(image, text, logit_scale=features[0]["scale"])


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 4, 3), (1,) * 12])
def test_gradients_are_those_of_the_large_batch(fabric, sizes):
    whole = made(fabric)
    loss = loss_of([whole(*data())])
    loss.backward()
    cached = made(fabric)
    parts = list(zip(*(one.split(sizes) for one in data()), strict=True))
    losses = []

    def kept(features):
        losses.append(loss_of(features))
        return losses[-1]

    cached_backward(fabric, cached, parts, lambda batch: cached(*batch), kept)
    torch.testing.assert_close(losses[0], loss)
    expected, actual = gradients(whole), gradients(cached)
    assert actual.keys() == expected.keys()
    assert "unused.weight" not in actual
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-7)


def test_gradients_add_up_with_those_there_are(fabric):
    model = made(fabric)
    parts = list(zip(*(one.split(4) for one in data()), strict=True))
    cached_backward(fabric, model, parts, lambda batch: model(*batch), loss_of)
    once = gradients(model)
    cached_backward(fabric, model, parts, lambda batch: model(*batch), loss_of)
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, 2 * once[name])


def test_dropout_is_drawn_alike_in_both_passes_and_goes_on_afterwards(fabric):
    """With the masks that the micro-batches draw one after the other, in one graph."""
    parts = list(zip(*(one.split(4) for one in data()), strict=True))
    whole = made(fabric, dropout=0.5)
    torch.manual_seed(3)
    loss_of([whole(*batch) for batch in parts]).backward()
    after = torch.rand(1)
    cached = made(fabric, dropout=0.5)
    torch.manual_seed(3)
    cached_backward(fabric, cached, parts, lambda batch: cached(*batch), loss_of)
    assert torch.equal(torch.rand(1), after)
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-5, atol=1e-7)


def test_batch_norms_count_each_micro_batch_once(fabric):
    parts = list(zip(*(one.split(4) for one in data()), strict=True))
    whole, cached = made(fabric, norm=True), made(fabric, norm=True)
    loss_of([whole(*batch) for batch in parts]).backward()
    cached_backward(fabric, cached, parts, lambda batch: cached(*batch), loss_of)
    ours, theirs = cached.state_dict(), whole.state_dict()
    assert ours["image.1.num_batches_tracked"] == 3
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-5, atol=1e-7)


def test_small_gradients_survive_half_precision(fabric, monkeypatch):
    """The gradient of the features is that of the scaled loss, as ``backward`` scales it."""

    class Scaler:
        def scale(self, value):
            return value * 2.0**14

    model = made(fabric)
    half = nn.Linear(6, 8)
    monkeypatch.setattr(fabric.strategy.precision, "scaler", Scaler(), raising=False)
    monkeypatch.setattr(fabric, "backward", lambda loss: (loss * 2.0**14).backward())
    x = data()[0]

    def features(batch):
        return (half(batch).half(),)

    def tiny(parts):
        return F.mse_loss(torch.cat([part[0] for part in parts]).float(), torch.ones(12, 8)) * 1e-7

    cached_backward(fabric, model, x.split(4), features, tiny)
    expected = torch.autograd.grad(F.mse_loss(half(x), torch.ones(12, 8)) * 1e-7, half.weight)[0]
    torch.testing.assert_close(half.weight.grad / 2.0**14, expected, rtol=2e-2, atol=0)
