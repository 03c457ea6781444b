"""What tests of released layouts share: small towers, and the comparison with a forward pass that is written again."""

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from recipes.medmoe.models.choice import ModelChoice
from recipes.medmoe.models.load import load_adapter
from tests.recipes.medmoe.models.saved import TEXTS, picture, word_pieces

COMMON = 24
DIM = 32
"""Width of the small BERT."""


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


def lively(module):
    """Gives norms of batches values that matter."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module.eval()


@torch.no_grad()
def small_resnet(fc=None):
    torch.manual_seed(2)
    model = ResNet(Bottleneck, [1, 1, 1, 1])
    model.fc = nn.Identity() if fc is None else fc
    return lively(model)


def under(prefix, module):
    return {prefix + name: value for name, value in module.state_dict().items()}


def tokens_of(texts, **options):
    return word_pieces()(texts, truncation=True, return_tensors="pt", **{"padding": True, **options})


def adapter_of(kind, path, tower):
    return load_adapter(ModelChoice(f"{kind}:{path}", text_tower=tower))


def check_images(adapter, expected_of, size=None, grid=None):
    """Embeddings of two images are those of the published forward on the adapter's own pixels."""
    pictures = [picture(50, 70, colours=not adapter.preprocess.grey), picture(66, 40)]
    images = adapter.preprocess.batch([adapter.preprocess.fit(one) for one in pictures])
    assert images.shape[-1] == (size or images.shape[-1])
    features = adapter.encode_images(images)
    close(features.embedding, unit(expected_of(images)))
    if grid is not None:
        assert tuple(features.maps[0].shape[2:]) == (grid, grid)
    return images, features


def check_texts(adapter, expected):
    features = adapter.encode_texts(adapter.tokenize(TEXTS))
    close(features.embedding, unit(expected))
    for row, text in enumerate(TEXTS):
        assert int(features.mask[row].sum()) == len(adapter.words(text))
    return features


def three_layers(bert, tokens):
    hidden = bert(tokens.input_ids, tokens.attention_mask, output_hidden_states=True).hidden_states
    return (hidden[1].mean(1) + hidden[2].mean(1) + hidden[-1].mean(1)) / 3
