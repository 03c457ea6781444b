"""Releases that keep towers of CLIP, PMC-CLIP and UniMed-CLIP, in files as published, written here at small sizes.

The forward pass of each is written again, plainly and from its published code (cited in the adapters), and must agree.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.recipes.medmoe.models.layouts import (
    COMMON,
    DIM,
    adapter_of,
    check_images,
    check_texts,
    lively,
    tokens_of,
    under,
    unit,
)
from tests.recipes.medmoe.models.saved import TEXTS, small_bert


def conv(state, name, x, stride=1, padding=0):
    return F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)


def norm(state, name, x):
    mean, var, weight, bias = (state[f"{name}.{one}"] for one in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def clip_resnet(state, x):
    """CLIP's ModifiedResNet with one block a stage: stem of three, pooled strides, attention pooling by 2 heads."""
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(norm(state, f"bn{number}", conv(state, f"conv{number}", x, stride, 1)))
    x = F.avg_pool2d(x, 2)
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 2)):
        at = f"layer{stage}.0."
        out = F.relu(norm(state, f"{at}bn1", conv(state, f"{at}conv1", x)))
        out = F.relu(norm(state, f"{at}bn2", conv(state, f"{at}conv2", out, padding=1)))
        pool = (lambda y: y) if stride == 1 else lambda y: F.avg_pool2d(y, 2)
        out = norm(state, f"{at}bn3", conv(state, f"{at}conv3", pool(out)))
        x = F.relu(out + norm(state, f"{at}downsample.1", conv(state, f"{at}downsample.0", pool(x))))
    places = x.flatten(2).mT
    places = torch.cat([places.mean(1, keepdim=True), places], 1) + state["attnpool.positional_embedding"]
    query, key, value = (
        F.linear(places, state[f"attnpool.{one}_proj.weight"], state[f"attnpool.{one}_proj.bias"])
        .unflatten(-1, (-1, 64))
        .transpose(1, 2)
        for one in "qkv"
    )
    weights = (query[:, :, :1] @ key.mT / 8).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)[:, 0]
    return F.linear(mixed, state["attnpool.c_proj.weight"], state["attnpool.c_proj.bias"])


@torch.no_grad()
def test_pmc_clip(tmp_path, tower):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(4)
    none = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
    sizes = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    image, bert, projection = lively(open_clip.CLIP(COMMON, sizes, none).visual), small_bert(), torch.randn(DIM, COMMON)
    torch.save(under("", image), tmp_path / "image_encoder(resnet50).pth")
    torch.save(under("", bert), tmp_path / "text_encoder.pth")
    torch.save(projection, tmp_path / "text_projection_layer.pth")
    adapter = adapter_of("pmc-clip", tmp_path, tower)
    check_images(adapter, lambda images: clip_resnet(image.state_dict(), images), 64, 2)
    tokens = tokens_of(TEXTS, padding="max_length", max_length=77)
    check_texts(adapter, bert(tokens.input_ids).last_hidden_state[:, 0] @ projection)  # no mask
    masked = unit(bert(tokens.input_ids, tokens.attention_mask).last_hidden_state[:, 0] @ projection)
    assert (masked - adapter.encode_texts(adapter.tokenize(TEXTS)).embedding).abs().max() > 1e-4
    assert math.log(adapter.scale) == pytest.approx(4.4292)
    torch.save({"a": projection}, tmp_path / "text_projection_layer.pth")
    with pytest.raises(ValueError, match="holds no matrix"):
        adapter_of("pmc-clip", tmp_path, tower)


def clip_vit(state, x, heads):
    """CLIP's ViT with quick GELU, from a state dict."""
    patch = state["conv1.weight"].shape[-1]
    x = F.conv2d(x, state["conv1.weight"], stride=patch).flatten(2).mT
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]
    layer_norm = lambda name, x: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    linear = lambda name, x: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    x = layer_norm("ln_pre", x)
    for number in range(
        len({name for name in state if re.fullmatch(r"transformer\.resblocks\.\d+\.ln_1\.bias", name)})
    ):
        at = f"transformer.resblocks.{number}."
        y = layer_norm(f"{at}ln_1", x)
        parts = F.linear(y, state[f"{at}attn.in_proj_weight"], state[f"{at}attn.in_proj_bias"]).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        x = x + linear(f"{at}attn.out_proj", (weights @ value).transpose(1, 2).flatten(2))
        hidden = linear(f"{at}mlp.c_fc", layer_norm(f"{at}ln_2", x))
        x = x + linear(f"{at}mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    return layer_norm("ln_post", x[:, 0]) @ state["proj"]


@torch.no_grad()
def test_unimed_clip(tmp_path, tower):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    none = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
    sizes = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "head_width": 64}
    image, bert = open_clip.CLIP(COMMON, sizes, none, quick_gelu=True).visual.eval(), small_bert()
    middle = (DIM + COMMON) // 2
    mlp = nn.Sequential(nn.Linear(DIM, middle, bias=False), nn.GELU(), nn.Linear(middle, COMMON, bias=False))
    state = under("module.visual.", image) | under("module.text_encoder.proj.", mlp)
    state |= {
        name: value for name, value in under("module.text_encoder.transformer.", bert).items() if ".pooler." not in name
    }
    state["module.logit_scale"] = torch.tensor(3.0)
    assert "module.visual.transformer.resblocks.1.attn.in_proj_weight" in state
    path = tmp_path / "unimed_clip_vit_b16.pt"
    torch.save({"epoch": 1, "state_dict": state}, path)
    adapter = adapter_of("unimed", path, tower)
    check_images(adapter, lambda images: clip_vit(image.state_dict(), images, 2), 32, 4)
    tokens = tokens_of(TEXTS, padding="max_length", max_length=256)
    check_texts(adapter, mlp(bert(tokens.input_ids, tokens.attention_mask).last_hidden_state[:, 0]))
    assert adapter.scale == pytest.approx(math.exp(3.0))
    torch.save({"visual.conv1.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no ViT as UniMed-CLIP has it"):
        adapter_of("unimed", path, tower)
