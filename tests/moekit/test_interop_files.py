"""Models with layers of moekit in place of blocks are saved as models of transformers, and load their checkpoints."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moekit.interop import from_transformers, load_transformers_, save_transformers
from tests.moekit.transformers_families import FAMILIES, MARKS, model_of

pytestmark = [*MARKS, pytest.mark.usefixtures("quiet_transformers")]


class Block(nn.Module):
    """A layer in the place of a block that returns its output alone."""

    def __init__(self, moe: nn.Module) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x).output


def with_layers(model: nn.Module) -> Any:
    """The model with layers in the places of its blocks."""
    for name, block in list(model.named_modules()):
        if type(block).__name__ in FAMILIES.values():
            model.set_submodule(name, Block(from_transformers(block)))
    return model


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def without_weights(model: Any) -> Any:
    """A model of the same configuration on the meta device."""
    with torch.device("meta"):
        return type(model)(model.config)


def blank(model: Any) -> Any:
    """The same model with other weights."""
    other = copy.deepcopy(model)
    for tensor in (*other.parameters(), *other.state_dict().values()):
        tensor.data.zero_()
    return other


@pytest.mark.parametrize("family", [each for each in FAMILIES if each != "longcat_flash"])
def test_files_are_those_that_transformers_writes(family: str, tmp_path: Path) -> None:
    model: Any = model_of(family)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=30000)
    like = without_weights(model)
    layers = with_layers(copy.deepcopy(model))
    save_transformers(layers, like, tmp_path / "mine", max_shard_size=30000)
    theirs, mine = tensors_in(tmp_path / "theirs"), tensors_in(tmp_path / "mine")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor), name
    for file in [path for path in (tmp_path / "theirs").iterdir() if "model" not in path.name]:
        assert json.loads((tmp_path / "mine" / file.name).read_text()) == json.loads(file.read_text())

    loaded = load_transformers_(blank(layers), like, tmp_path / "theirs")
    for name, tensor in layers.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_transformers_loads_it(tmp_path: Path) -> None:
    model: Any = model_of("mixtral", torch.bfloat16, tie_word_embeddings=True)
    layers = with_layers(copy.deepcopy(model))
    assert layers.lm_head.weight is layers.model.embed_tokens.weight
    layers.model.layers[0].mlp.moe.experts.up_proj.data.mul_(2)
    save_transformers(layers, without_weights(model), tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    tokens = torch.arange(6)[None]
    assert torch.equal(with_layers(loaded)(tokens).logits, layers(tokens).logits)


def test_weights_without_memory(tmp_path: Path) -> None:
    """Parameters on the meta device get memory; a buffer that no file holds must have its values."""
    model: Any = model_of("qwen3_moe", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    layers = with_layers(copy.deepcopy(model))
    like = without_weights(model)
    empty = copy.deepcopy(layers)
    for module in empty.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(each.to("meta")))
    load_transformers_(empty, like, tmp_path)
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    tokens = torch.arange(6)[None]
    assert torch.equal(empty(tokens).logits, layers(tokens).logits)
    with pytest.raises(ValueError, match=r"buffers that no file holds, got model.rotary_emb.\w+ on the meta device"):
        load_transformers_(with_layers(copy.deepcopy(like)), like, tmp_path)


def test_errors(tmp_path: Path) -> None:
    model: Any = model_of("mixtral")
    layers, like = with_layers(copy.deepcopy(model)), without_weights(model)

    def refused(message: str, layers: Any = layers, like: Any = like) -> None:
        with pytest.raises(ValueError, match=message):
            save_transformers(layers, like, tmp_path / "files")
        assert not (tmp_path / "files").exists()

    refused("got a Linear without any", like=nn.Linear(2, 2))
    refused("one SparseMoE in the place of each sparse block, got 0 in 'model.layers.0.mlp'", copy.deepcopy(model))
    capped = copy.deepcopy(layers)
    capped.model.layers[0].mlp.moe.capacity_factor = 1.0
    refused("got one with other parts: the layer: .*capacity_factor", capped)
    more = copy.deepcopy(layers)
    more.model.scale = nn.Parameter(torch.ones(1))
    refused("the tensors of like, .*got others: model.scale", more)
    wider = copy.deepcopy(layers)
    wider.lm_head = nn.Linear(32, 7, bias=False)
    refused("got others: lm_head.weight", wider)
    tied = copy.deepcopy(like)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    refused("must tie what like ties, got other tensors for", like=tied)
    longcat: Any = model_of("longcat_flash")
    refused("no identity experts", with_layers(copy.deepcopy(longcat)), without_weights(longcat))

    save_transformers(layers, like, tmp_path)
    small: Any = model_of("olmoe")
    with pytest.raises(ValueError, match=r"must hold the tensors that transformers saves of like, not so: .* more\."):
        load_transformers_(with_layers(copy.deepcopy(small)), without_weights(small), tmp_path)
