"""The way back to dense: the MLP that was there, averages of its parts, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from moekit.interop import (
    DropUpcycling,
    merge_experts_,
    prune_experts_,
    to_dense_,
    upcycle_,
)
from tests.moekit.interop.mlps import KINDS, Gated, Model, Plain, sequential, tokens
from tests.moekit.interop.sparse_models import FOUR, LAYERS, layer_of


@pytest.mark.parametrize("granularity", [1, 2])
@pytest.mark.parametrize("kind", [each for each in KINDS if "square" not in each and "wide" not in each])
def test_copies_give_the_mlp_back(kind: str, granularity: int) -> None:
    model = nn.Sequential(KINDS[kind]()).train()
    for name, weight in model.named_parameters():
        weight.requires_grad_("down" not in name and "last" not in name)
    before = copy.deepcopy(model)
    upcycle_(model, "0", **FOUR, granularity=granularity)
    assert list(to_dense_(model)) == ["0"]
    assert repr(model) == repr(before)
    assert list(model.state_dict()) == list(before.state_dict())
    for (name, mine), its in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, its), name
        assert mine.requires_grad == its.requires_grad, name
    assert all(module.training for module in model.modules())
    x = tokens()
    assert torch.equal(model.eval()(x), before.eval()(x))


def test_the_mode_is_that_of_the_layer() -> None:
    model = nn.Sequential(sequential()).eval()
    upcycle_(model, "0", **FOUR)
    model.train()
    to_dense_(model)
    assert all(module.training for module in model.modules())


def test_weights_of_each_part_are_averaged() -> None:
    model = nn.Sequential(Plain())
    layer = upcycle_(model, "0", num_experts=4, top_k=2, granularity=2, method=DropUpcycling(0.5))["0"]
    up, down_bias = layer.moe.experts.up_proj.detach(), layer.moe.experts.down_bias.detach()
    mlp = to_dense_(model, usage={"0": [1.0, 1.0, 3.0, 0.0]})["0"]
    assert mlp is model[0]
    assert isinstance(mlp, Plain)
    assert torch.allclose(mlp.first.weight, torch.cat([up[0] / 4 + up[2] * 3 / 4, up[1]]), atol=1e-6)
    assert torch.allclose(mlp.last.bias, down_bias[0] / 4 + down_bias[2] * 3 / 4 + down_bias[1], atol=1e-6)


def test_merged_and_pruned_layers_become_dense() -> None:
    model = Model(Gated)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    upcycle_(model, "blocks.*.mlp", num_experts=8, top_k=4, granularity=2)
    usage = dict.fromkeys(LAYERS, range(8, 0, -1))
    prune_experts_(model, keep=6, usage=usage)
    merge_experts_(model, into=2, usage=dict.fromkeys(usage, range(6)))
    to_dense_(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_errors_of_to_dense() -> None:
    with pytest.raises(ValueError, match="model must hold sparse layers, got a Linear without any"):
        to_dense_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'moe' is no layer that upcycle_ made, whose place is that of an MLP"):
        to_dense_(layer_of())
    model = nn.Sequential(sequential())
    moe = upcycle_(model, "0", **FOUR, granularity=2)["0"].moe
    prune_experts_(model, keep={"0": [0, 2]})
    with pytest.raises(ValueError, match=r"'0' has no expert of parts \[1\] of the MLP any more"):
        to_dense_(model)
    moe.router.scaling_factor = 1.0
    with pytest.raises(ValueError, match="'0' has a router whose gates do not sum to 2"):
        to_dense_(model)
    moe.shared = nn.Identity()
    with pytest.raises(ValueError, match="'0' has other experts than FFNExperts, or a shared one"):
        to_dense_(model)
