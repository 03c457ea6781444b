"""Models that hold parts are saved and loaded: by their own class, into a model that was built again, on the Hub."""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from moekit import FFN, FFNExperts, HardRouter, ModuleExperts, Router, SparseMoE, TopKRouter, ZeroExpert
from moekit.activations import Activation, glu
from moekit.interop import UpcycledMLP, to_dense_, upcycle_
from moekit.interop.hub import MoEHubMixin, from_pretrained, push_to_hub, save_pretrained
from moekit.interop.hub import folder as hub_folder
from tests.moekit.interop.hub.parts import (
    DIM,
    EXPERTS,
    HIDDEN,
    TOP_K,
    assert_same,
    description_in,
    randomized,
)
from tests.moekit.interop.mlps import Model, sequential, tokens


class Block(nn.Module):
    """A model of the user's, whose first and last layers are one, and whose dense part has no parts of moekit."""

    def __init__(self, moe: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(DIM, DIM, bias=False)
        self.blocks = nn.ModuleList([nn.Identity(), moe or SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K)])
        self.head = nn.Linear(DIM, DIM, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks[1](self.embed(x)).output) * self.scale


def _sigmoid_layer() -> SparseMoE:
    return SparseMoE(TopKRouter(DIM, EXPERTS, 3, scoring="sigmoid"), FFNExperts(DIM, HIDDEN, EXPERTS))


def test_parts_are_put_into_a_model_that_was_built_again(tmp_path):
    model = randomized(Block(_sigmoid_layer()))
    model.blocks[1].capacity_factor = 1.5
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, model=Block())
    assert loaded.head.weight is loaded.embed.weight
    assert_same(model, loaded, (torch.randn(10, DIM),), {})


def test_a_layer_in_two_places_is_one_layer_again(tmp_path):
    moe = _sigmoid_layer()
    model = nn.Sequential(moe, nn.Identity(), moe)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, model=nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity()))
    assert loaded[0] is loaded[2]
    assert len(list(loaded.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("upcycled_before", [False, True])
def test_an_upcycled_model_is_loaded_into_the_dense_one(upcycled_before, tmp_path):
    model = Model(sequential)
    upcycle_(model, "blocks.*.mlp", num_experts=4, top_k=2, granularity=2)
    randomized(model)
    save_pretrained(model, tmp_path)
    other = Model(sequential)
    if upcycled_before:
        upcycle_(other, "blocks.*.mlp", num_experts=2, top_k=1)
    loaded = from_pretrained(tmp_path, model=other)
    assert isinstance(loaded.blocks[1].mlp, UpcycledMLP)
    assert_same(model, loaded, (tokens(),), {})
    assert loaded.blocks[0].mlp.shard_of_expert == (0, 1, 0, 1)
    x = tokens()
    for each in (model, loaded):
        to_dense_(each)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def test_upcycled_models_of_timm_and_transformers(tmp_path):
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    config = transformers.LlamaConfig(**sizes, **heads)
    vit = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    for name, make, where, x in (
        ("vit", lambda: timm.models.VisionTransformer(**vit), "blocks.*.mlp", torch.randn(1, 3, 32, 32)),
        ("llama", lambda: transformers.LlamaForCausalLM(config), "model.layers.*.mlp", torch.arange(6)[None]),
    ):
        model = make()
        upcycle_(model, where, num_experts=4, top_k=2)
        save_pretrained(randomized(model), tmp_path / name)
        loaded = from_pretrained(tmp_path / name, model=make())
        assert list(loaded.state_dict()) == list(model.state_dict())
        output, expected = (_logits(each(x)) for each in (loaded, model))
        assert torch.equal(output, expected)
        assert len(list(loaded.parameters())) == len(list(model.parameters()))


def test_an_upcycled_layer_alone_needs_its_model(tmp_path):
    model = Model(sequential)
    layer = upcycle_(model, "blocks.0.mlp", num_experts=4, top_k=2)["blocks.0.mlp"]
    save_pretrained(layer, tmp_path)
    message = "is a moekit.UpcycledMLP, which stands in place of a module of a model: pass that model"
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_a_model_on_the_meta_device_gets_the_tensors_of_the_file(tmp_path):
    model = randomized(Block(_sigmoid_layer()))
    model.register_buffer("scale", None)
    save_pretrained(model, tmp_path)
    with torch.device("meta"):
        empty = Block()
    empty.register_buffer("scale", None)
    loaded = from_pretrained(tmp_path, model=empty)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_compiled_and_wrapped_layers_are_where_they_were(tmp_path):
    model = Block()
    model.blocks[1] = torch.compile(_sigmoid_layer(), backend="eager")
    save_pretrained(model, tmp_path)
    assert list(description_in(tmp_path)["parts"]) == ["blocks.1._orig_mod"]
    other = Block()
    other.blocks[1] = torch.compile(other.blocks[1], backend="eager")
    loaded = from_pretrained(tmp_path, model=other)
    assert loaded.blocks[1]._orig_mod.router.scoring == "sigmoid"


def test_large_models_are_several_files(tmp_path):
    layer = randomized(_sigmoid_layer())
    save_pretrained(layer, tmp_path, max_shard_size=4 * layer.experts.up_proj.numel())
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 3
    assert_same(layer, from_pretrained(tmp_path), (torch.randn(10, DIM),), {})
    # Saved again in one file, nothing of the others is left.
    save_pretrained(layer, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.safetensors", "moekit.json"]


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    layer = _sigmoid_layer()
    both = torch.randn(2, *layer.experts.down_proj.shape)
    layer.experts.down_proj = nn.Parameter(both[0])
    layer.experts.up_proj = nn.Parameter(both.view(-1)[: layer.experts.up_proj.numel()].view_as(layer.experts.up_proj))
    save_pretrained(layer, tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, layer.state_dict()[name])
    sizes = sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert (tmp_path / "model.safetensors").stat().st_size < sizes + 1000


@dataclasses.dataclass
class Sizes:
    """Settings of a model, as many have them."""

    depth: int = 2


class Hub(nn.Module, MoEHubMixin, library_name="moekit", tags=["mixture-of-experts"]):
    """A model whose constructor takes parts."""

    def __init__(
        self, dim: int, router: Router, activation: "Activation | str" = "gelu", sizes: Sizes | None = None
    ) -> None:
        super().__init__()
        self.sizes = sizes or Sizes()
        self.norm = nn.LayerNorm(dim)
        self.moe = SparseMoE(router, FFNExperts(dim, HIDDEN, router.num_experts, activation=activation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.moe(self.norm(x)).output


def test_a_model_class_saves_the_parts_that_it_was_built_with(tmp_path):
    model = Hub(DIM, HardRouter(DIM, EXPERTS, gradient="none"), glu("relu"), sizes=Sizes(5))
    model.moe.capacity_factor, model.moe.router = 1.25, TopKRouter(DIM, EXPERTS, 2, scoring="sigmoid")
    randomized(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dim"] == DIM
    assert "library_name: moekit" in (tmp_path / "README.md").read_text()
    loaded = Hub.from_pretrained(tmp_path)
    assert (loaded.moe.capacity_factor, loaded.sizes) == (1.25, Sizes(5))
    assert_same(model, loaded, (torch.randn(10, DIM),), {})
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_model_class_with_another_part_is_built_but_not_saved(tmp_path):
    class Own(HardRouter):
        pass

    model = Hub(DIM, Own(DIM, EXPERTS))
    assert model(torch.randn(3, DIM)).shape == (3, DIM)
    with pytest.raises(ValueError, match=r"argument router cannot be saved: .*Own, which no file can name: register"):
        model.save_pretrained(tmp_path)


def double(x: torch.Tensor) -> torch.Tensor:
    """An activation that is not registered."""
    return 2 * x


class Bank(nn.Module, MoEHubMixin):
    """A model whose constructor takes parts in a list, and a function."""

    def __init__(self, experts, *, activation="gelu", config: Sizes | None = None, device=None, dtype=None) -> None:
        super().__init__()
        self.dtype = dtype
        self.moe = SparseMoE(
            TopKRouter(DIM, len(experts), 1), ModuleExperts(experts), shared=FFN(DIM, 3, activation=activation)
        )

    def forward(self, x):
        return self.moe(x).output


def test_arguments_in_sequences_and_functions(tmp_path):
    options = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "activation": torch.tanh}
    model = randomized(Bank((nn.Linear(DIM, DIM), ZeroExpert()), **options))
    model.save_pretrained(tmp_path)
    assert Bank.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert_same(model, Bank.from_pretrained(tmp_path), (torch.randn(10, DIM),), {})
    with pytest.raises(
        ValueError, match=r"argument activation cannot be saved: .*is the function double, which no file"
    ):
        Bank([nn.Identity()], activation=double).save_pretrained(tmp_path)


def test_arguments_beside_a_config_are_not_lost_in_silence(tmp_path):
    with pytest.raises(
        ValueError, match="the arguments experts cannot be saved: beside a dataclass as config, hugging"
    ):
        Bank([nn.Identity()], config=Sizes(3)).save_pretrained(tmp_path)


def test_a_subclass_has_the_coders_too(tmp_path):
    class Deeper(Hub):
        pass

    model = Deeper(DIM, TopKRouter(DIM, EXPERTS, 2))
    model.save_pretrained(tmp_path)
    assert isinstance(Deeper.from_pretrained(tmp_path), Deeper)


class OwnLayer(SparseMoE, MoEHubMixin):
    """A layer that is a model of its own."""

    def __init__(self, width: int, router: Router) -> None:
        super().__init__(router, FFNExperts(width, HIDDEN, router.num_experts))


def test_a_subclass_of_a_layer_is_built_by_its_own_constructor(tmp_path):
    layer = OwnLayer(DIM, HardRouter(DIM, EXPERTS, gradient="straight_through"))
    randomized(layer).save_pretrained(tmp_path)
    assert list(description_in(tmp_path)["parts"]) == ["router", "experts"]
    assert_same(layer, OwnLayer.from_pretrained(tmp_path), (torch.randn(10, DIM),), {})


class _Api:
    """Stands for the Hub: keeps what would be uploaded."""

    def __init__(self, kept: Path, calls: list[dict[str, object]]) -> None:
        self.kept, self.calls = kept, calls

    def __call__(self, token=None):
        self.calls.append({"token": token})
        return self

    def create_repo(self, **options):
        self.calls.append(options)
        return type("Url", (), {"repo_id": f"me/{options['repo_id']}"})

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(options)
        os.makedirs(self.kept)
        for each in Path(folder_path).iterdir():
            (self.kept / each.name).write_bytes(each.read_bytes())
        return f"https://hub/{options['repo_id']}/commit/1"


def test_push_and_download(monkeypatch, tmp_path):
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(hub_folder, "HfApi", _Api(tmp_path / "hub", calls))
    layer = randomized(_sigmoid_layer())
    address = push_to_hub(layer, "layer", private=True, token="t", branch="new", create_pr=True, commit_message="m")
    assert address == "https://hub/me/layer/commit/1"
    assert calls == [
        {"token": "t"},
        {"repo_id": "layer", "private": True, "exist_ok": True},
        {"repo_id": "me/layer", "commit_message": "m", "revision": "new", "create_pr": True},
    ]

    asked = {}

    def snapshot(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub_folder, "snapshot_download", snapshot)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "force_download": True, "local_files_only": True}
    loaded = from_pretrained("me/layer", **options)
    assert_same(layer, loaded, (torch.randn(10, DIM),), {})
    assert asked.pop("allow_patterns") == [
        "moekit.json", "model.safetensors.index.json", "config.json", "model*.safetensors",
    ]  # fmt: skip
    assert asked == options | {"repo_id": "me/layer"}


def test_the_model_is_not_changed_by_saving(tmp_path):
    model = Block(_sigmoid_layer()).train()
    before = copy.deepcopy(model)
    save_pretrained(model, tmp_path)
    assert repr(model) == repr(before)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
