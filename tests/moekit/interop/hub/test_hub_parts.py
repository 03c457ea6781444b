"""Every part of the package is saved and loaded: equal state, output, gradients and ``repr``."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import moekit
from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.activations import clamped_swiglu, glu, situ, situ_glu
from moekit.interop import UpcycledMLP, from_transformers
from moekit.interop.hub import from_pretrained, save_pretrained
from moekit.interop.hub.encode import Encoder
from moekit.interop.hub.registry import PARTS
from moekit_kernels.activations.activation import ACTIVATIONS, BUILT_IN
from tests.moekit.interop.hub.parts import (
    DIM,
    EXAMPLES,
    EXPERTS,
    HIDDEN,
    TOP_K,
    assert_same,
    description_in,
    names_in,
    randomized,
    saved_and_loaded,
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_part_comes_back(name, tmp_path):
    example = EXAMPLES[name]
    part = randomized(example.build())
    random = torch.random.get_rng_state()
    loaded = saved_and_loaded(part, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), random), "no number is drawn"
    assert not loaded.training
    assert_same(part, loaded, example.arguments(), example.options())
    again = tmp_path / "again"
    saved_and_loaded(loaded, again)
    assert description_in(again) == description_in(tmp_path)


def _public_modules() -> Iterator[type[nn.Module]]:
    packages = [moekit]
    for each in pkgutil.walk_packages(moekit.__path__, "moekit."):
        if not each.name.endswith("__main__"):
            packages.append(importlib.import_module(each.name))
    for package in packages:
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if isinstance(value, type) and issubclass(value, nn.Module) and not inspect.isabstract(value):
                yield value


def test_every_public_module_can_be_saved():
    """A new part needs a line in moekit.interop.hub.known, and an example."""
    registered = {part.kind for part in PARTS.values()}
    missing = {kind.__name__ for kind in _public_modules()} - {kind.__name__ for kind in registered}
    assert not missing, "add them to moekit.interop.hub.known, and an example to tests/moekit/interop/hub/parts.py"


def test_every_part_has_an_example():
    shown = set().union(*(names_in(Encoder().part(each.build(), "", "")) for each in EXAMPLES.values()))
    # Stands in a model only: see test_hub_models.py.
    assert {name for name in PARTS if name.startswith("moekit.")} - shown == {f"moekit.{UpcycledMLP.__name__}"}


def test_tensors_keep_their_dtypes(tmp_path):
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K, selection_bias=True), FFNExperts(DIM, HIDDEN, EXPERTS))
    layer.experts.to(torch.bfloat16)
    loaded = saved_and_loaded(layer, tmp_path)
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert dtypes == {name: tensor.dtype for name, tensor in layer.state_dict().items()}
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    "activation",
    [
        clamped_swiglu(1e-7, 3.5, offset=0.0),
        clamped_swiglu(-1.5, 1e10, interleaved=False),
        situ(1.25),
        situ_glu(0.3, 7, interleaved=True),
        glu(situ(2.5), interleaved=True),
        glu("relu2"),
    ],
    ids=repr,
)
def test_activations_of_the_package_are_made_again(activation, monkeypatch, tmp_path):
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K), FFNExperts(DIM, HIDDEN, EXPERTS, activation=activation)).eval()
    save_pretrained(layer, tmp_path)
    for name in [each for each in ACTIVATIONS if each not in BUILT_IN]:  # as in another process
        monkeypatch.delitem(ACTIVATIONS, name)
    loaded = from_pretrained(tmp_path)
    assert loaded.experts.activation is not activation
    assert_same(layer, loaded, (torch.randn(9, DIM),), {})


def test_a_module_that_stands_twice_stands_twice_again(tmp_path):
    part = EXAMPLES["modules"].build()
    loaded = saved_and_loaded(part, tmp_path)
    assert loaded.experts.experts[0] is loaded.experts.experts[5]
    assert len(list(loaded.parameters())) == len(list(part.parameters()))


def test_modes_and_frozen_tensors_are_not_saved(tmp_path):
    layer = SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K).train()
    layer.experts.requires_grad_(False)
    loaded = saved_and_loaded(layer, tmp_path)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quiet_transformers")
@pytest.mark.parametrize(
    "family", ["deepseek_v2", "gpt_oss", "lfm2_moe", "llama4", "longcat_flash", "nemotron_h", "phimoe", "qwen2_moe"]
)
def test_layers_made_of_blocks_of_transformers(family, tmp_path):
    from tests.moekit.transformers_families import DIM as WIDTH
    from tests.moekit.transformers_families import INSTALLED, block_of

    if INSTALLED < (5, 24):
        pytest.skip("blocks of older transformers are made otherwise, and refused")
    layer = from_transformers(block_of(family)).eval()
    assert_same(layer, saved_and_loaded(layer, tmp_path), (torch.randn(7, WIDTH),), {})
