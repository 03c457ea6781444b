"""Any layer of known parts is the same after it was saved and loaded."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit import (
    FFN,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    Router,
    SparseMoE,
    TopKRouter,
    ZeroExpert,
)
from moekit.activations import clamped_swiglu, glu, situ, situ_glu
from tests.moekit.interop.hub.parts import DIM, assert_same, randomized, saved_and_loaded

NUMBERS = st.floats(0.125, 8, width=32)
ACTIVATIONS = st.one_of(
    st.sampled_from(["gelu", "relu2", "swiglu", "geglu_tanh_interleaved", "clamped_swiglu"]),
    st.builds(clamped_swiglu, NUMBERS, NUMBERS, st.booleans(), offset=NUMBERS),
    st.builds(situ, NUMBERS),
    st.builds(situ_glu, NUMBERS, NUMBERS, interleaved=st.booleans()),
    st.builds(lambda beta, interleaved: glu(situ(beta), interleaved=interleaved), NUMBERS, st.booleans()),
    st.sampled_from([torch.tanh, nn.functional.elu]),
)


@st.composite
def _routers(draw: st.DrawFn, num_experts: int) -> Router:
    gate: dict[str, Any] = {
        "gate_hidden_dim": draw(st.sampled_from([None, 3])),
        "gate_bias": draw(st.booleans()),
        "init_scale": draw(NUMBERS),
    }
    kind = draw(st.sampled_from(["top_k", "hard", "expert_choice"]))
    if kind == "hard":
        return HardRouter(DIM, num_experts, gradient=draw(st.sampled_from(["scale", "none"])), **gate)
    if kind == "expert_choice":
        return ExpertChoiceRouter(DIM, num_experts, capacity_factor=draw(st.floats(0.25, 1)), **gate)
    top_k = draw(st.integers(1, num_experts))
    noisy = draw(st.booleans())
    return TopKRouter(
        DIM,
        num_experts,
        top_k,
        scoring=draw(st.sampled_from(["softmax", "sigmoid"])),
        renormalize=draw(st.sampled_from([None, False] + ([True] if top_k > 1 else []))),
        scaling_factor=draw(NUMBERS),
        jitter=draw(st.floats(0, 0.5)),
        noisy=noisy,
        selection_bias=not noisy and draw(st.booleans()),
        **gate,
    )


@st.composite
def layers(draw: st.DrawFn) -> SparseMoE:
    """Layers of random parts and settings, of which some are set after they were built."""
    num_experts = draw(st.sampled_from([1, 2, 4]))
    router = draw(_routers(num_experts))
    if draw(st.booleans()):
        bias, activation = draw(st.booleans()), draw(ACTIVATIONS)
        experts = FFNExperts(DIM, draw(st.integers(1, 7)), num_experts, activation=activation, bias=bias)
    else:
        modules = [nn.Linear(DIM, DIM), ZeroExpert(), nn.Identity(), FFN(DIM, 3, bias=True)]
        experts = ModuleExperts(modules[:num_experts])
    shared = FFN(DIM, 5, activation=draw(ACTIVATIONS), gated=draw(st.booleans())) if draw(st.booleans()) else None
    layer = SparseMoE(router, experts, shared=shared)
    if router.top_k > 0:
        layer.capacity_factor = draw(st.one_of(st.none(), NUMBERS))
        layer.drop_policy = draw(st.sampled_from(["position", "gate"]))
        layer.gates_on = draw(st.sampled_from(["outputs", "inputs"]))
    layer.to(draw(st.sampled_from([torch.float32, torch.float64])))
    return layer


@settings(max_examples=40)
@given(layers(), st.integers(0, 9))
def test_a_layer_is_the_same_after_saving_and_loading(layer, num_tokens):
    randomized(layer)
    x = torch.randn(num_tokens, DIM, dtype=next(layer.parameters()).dtype)
    with tempfile.TemporaryDirectory() as folder:
        loaded = saved_and_loaded(layer, Path(folder))
        assert_same(layer, loaded, (x,), {})
        for name in ("capacity_factor", "drop_policy", "gates_on", "impl"):
            assert getattr(loaded, name) == getattr(layer, name)
