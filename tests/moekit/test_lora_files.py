"""Adapters in state dicts and copies, merged or not, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from moekit.lora import (
    add_lora_,
    load_lora_state_dict_,
    lora_disabled,
    lora_parameters,
    lora_state_dict,
    merge_lora_,
    remove_lora_,
    unmerge_lora_,
)
from tests.moekit.lora_models import DIM, Subclass, make, trained_model


def test_merged_state_dict_is_that_of_a_plain_model():
    model, x = trained_model(torch.float64), torch.randn(40, DIM, dtype=torch.float64)
    output = model(x)
    merge_lora_(model)
    plain = make(torch.float64)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), output)
    with pytest.raises(RuntimeError, match="lora is merged, so that its experts cannot be loaded: call unmerge_lora_"):
        model.load_state_dict(plain.state_dict())


def test_state_dicts_whole_and_of_adapters_alone():
    model, x = trained_model(), torch.randn(40, DIM)
    names = [f"moe.experts.lora.{each}" for each in ("up_a", "up_b", "down_a", "down_b", "stored_scaling")]
    assert list(lora_state_dict(model)) == names
    assert [name for name in model.state_dict() if ".lora." in name] == names
    assert set(make().state_dict()) == set(model.state_dict()) - set(names)
    other = make()
    add_lora_(other, rank=3)
    load_lora_state_dict_(other, lora_state_dict(model))
    assert torch.equal(other(x), model(x))
    third = make()
    add_lora_(third, rank=3)
    third.load_state_dict(model.state_dict())
    assert torch.equal(third(x), model(x))


def test_adapters_are_loaded_with_their_scaling_alone():
    model, other = trained_model(alpha=8.0), trained_model(alpha=16.0)
    with pytest.raises(
        ValueError, match=r"must be of adapters of scaling 5.33333 for experts 'moe.experts', got 2.66667"
    ):
        load_lora_state_dict_(other, lora_state_dict(model))
    with pytest.raises(
        RuntimeError, match=r"lora has the scaling 5.33333, but is loaded from adapters of scaling 2.666"
    ):
        other.load_state_dict(model.state_dict())
    stable = trained_model(alpha=8.0, rank_stabilized=True).bfloat16()
    assert stable.moe.experts.lora.scaling == pytest.approx(8 / 3**0.5)
    assert stable.moe.experts.lora.stored_scaling.dtype == torch.float32
    stable.load_state_dict(stable.state_dict())


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (make, {"rank": 0}, "rank must be at least 1, got 0"),
        (make, {"products": ("gate",)}, "products must be one of 'up', 'down', got 'gate'"),
        (make, {"products": ()}, "products must name at least one of 'up', 'down', got none"),
        (make, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        (
            make,
            {"where": "head"},
            "must hold FFNExperts or stacked experts of transformers, got 'head', a Linear, with",
        ),
        (lambda: nn.Linear(2, 2), {}, "stacked experts of transformers, got a Linear without any"),
        (lambda: make(recompute="all"), {}, "recompute of experts 'moe.experts' must be \"activation\" .* got 'all'"),
        (lambda: Subclass(4, 4, 2), {}, "experts '' must be FFNExperts, got a Subclass, which may compute otherwise"),
        (trained_model, {}, "experts 'moe.experts' must have no adapters yet: call remove_lora_ first"),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_nothing_changes(build, options, message):
    model = build()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        add_lora_(model, **options)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_refusals_of_the_other_functions():
    for function in (lora_parameters, lora_state_dict, merge_lora_, unmerge_lora_, remove_lora_):
        with pytest.raises(
            ValueError, match="must hold experts with adapters, got a Block without any: add_lora_ adds"
        ):
            function(make())
    model = trained_model()
    with pytest.raises(ValueError, match='recompute must be "activation" for experts with adapters'):
        model.moe.experts.recompute = "none"
    state = lora_state_dict(model)
    with pytest.raises(ValueError, match=r"1 names too few .*up_a.* and 0 too many"):
        load_lora_state_dict_(model, {k: v for k, v in state.items() if not k.endswith("up_a")})
    with pytest.raises(
        ValueError, match=r"up_a'\] must have shape \(4, 3, 6\), got \(4, 2, 6\): add adapters of the same"
    ):
        load_lora_state_dict_(model, {k: v[:, :2] if k.endswith("up_a") else v for k, v in state.items()})
    merge_lora_(model)
    for call in (lambda: lora_state_dict(model), lora_disabled(model).__enter__):
        with pytest.raises(ValueError, match=r"adapters must not be merged to be .*, got 'moe.experts' merged"):
            call()
    model.moe.experts.__class__ = type("Other", (type(model.moe.experts),), {})
    with pytest.raises(ValueError, match="must have the class that add_lora_ gave them, got a Other"):
        remove_lora_(model)


def test_quantised_or_sharded_weights_are_not_merged():
    model = trained_model()
    model.moe.experts.up_proj = nn.Parameter(model.moe.experts.up_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"must have plain floating weights to be merged, got a Parameter of torch.int8"
    ):
        merge_lora_(model)


def test_compiled_whole_copied_and_built_on_the_meta_device():
    model, x = trained_model(), torch.randn(40, DIM)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with torch.device("meta"):
        empty = make()
        add_lora_(empty, rank=3)
    empty.to_empty(device="cpu")
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(x), model(x))
