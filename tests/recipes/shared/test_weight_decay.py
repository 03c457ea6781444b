"""Weight decay goes by the role of a parameter, not by its shape."""

import pytest
import torch
from torch import nn

from moekit import SoftMoE, SparseMoE
from recipes.medmoe.build import new_model as new_medmoe
from recipes.medmoe.config import tiny as tiny_medmoe
from recipes.medvlmoe.build import new_model as new_medvlmoe
from recipes.medvlmoe.config import tiny as tiny_medvlmoe
from recipes.shared.weight_decay import matrix_names, parameter_groups

TEXTS = ["fever and cough", "no pain"] * 3


def everything(name: str) -> str:
    return "all"


def test_stacked_biases_of_experts_do_not_decay_and_their_matrices_do():
    moe = SparseMoE.ffn(4, 8, num_experts=3, top_k=1, activation="gelu", bias=True)
    assert matrix_names(moe) == {"router.gate.layers.0.weight", "experts.up_proj", "experts.down_proj"}
    assert moe.experts.up_bias.ndim == 2


def test_norms_embeddings_positions_and_scales_do_not_decay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 7, 4))
            self.words = nn.Embedding(9, 4)
            self.norm = nn.LayerNorm([3, 4])  # its weight has two dimensions
            self.layer = nn.Linear(4, 4)
            self.convolution = nn.Conv1d(4, 4, 3)
            self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)

    assert matrix_names(Net()) == {
        "layer.weight",
        "convolution.weight",
        *(f"attention.{one}_proj_weight" for one in "qkv"),
        "attention.out_proj.weight",
    }


def test_the_soft_layers_slots_decay():
    experts = SparseMoE.ffn(4, 8, num_experts=2, top_k=1).experts
    assert "phi" in matrix_names(SoftMoE(4, experts, slots_per_expert=1))


def test_a_matrix_inside_a_wrapper_decays():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    assert matrix_names(Wrapper(nn.Linear(2, 2))) == {"inner.weight"}


def test_a_matrix_that_two_modules_share_is_named_once():
    first, second = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    second.weight = first.weight
    assert matrix_names(nn.Sequential(first, second)) == {"0.weight"}


@pytest.mark.parametrize("recipe", ["medmoe", "medvlmoe"])
def test_every_parameter_of_a_recipe_has_its_role(recipe):
    """By the names that the models give: no bias, norm, embedding, position or null stream decays; all else does."""
    if recipe == "medmoe":
        model = new_medmoe(tiny_medmoe(), TEXTS)
    else:
        model = new_medvlmoe(tiny_medvlmoe(), TEXTS, ("a", "b"), "multi-label")
    matrices = matrix_names(model)
    names = {name for name, _ in model.named_parameters()}
    others = ("bias", "norm", "embed", "position", "null_text", "null_image")
    expected = {
        name for name in names if not any(word in name.lower().removeprefix("image_encoder.") for word in others)
    }
    # Batch norms of the image encoder stand in sequences, without a name of their own.
    norms = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
    }
    assert matrices == expected - norms


def test_groups_hold_every_trained_parameter_once_with_its_rate():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    model[2].requires_grad_(False)
    groups = parameter_groups(
        model,
        weight_decay=0.3,
        rates={"first": 1.0, "second": 2.0},
        part_of=lambda n: "first" if n[0] == "0" else "second",
    )
    settings = {name: (group["peak_lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert settings == {"0.weight": (1.0, 0.3), "0.bias": (1.0, 0.0), "1.weight": (2.0, 0.3), "1.bias": (2.0, 0.0)}
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is p for g in groups for name, p in zip(g["names"], g["params"], strict=True))
