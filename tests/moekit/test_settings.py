"""Settings that are changed after a module was built: they take effect, or are refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from moekit import (
    FFN,
    BidirectionalCrossAttention,
    CrossScaleAttention,
    CrossScaleExperts,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    ModalityGate,
    ModuleExperts,
    SoftMoE,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
)
from moekit.routers.gate import Gate

DIM, EXPERTS = 6, 4


def make_router(**options) -> TopKRouter:
    torch.manual_seed(0)
    return TopKRouter(DIM, EXPERTS, **({"top_k": 2} | options))


def make_experts(**options) -> FFNExperts:
    torch.manual_seed(0)
    return FFNExperts(DIM, 5, EXPERTS, **options)


MODULES = {
    "top-k": make_router,
    "top-k in groups": lambda: make_router(top_k=1, num_groups=2, topk_groups=1),
    "hard": lambda: HardRouter(DIM, EXPERTS),
    "hash": lambda: HashRouter(EXPERTS, 10),
    "hash with learned gates": lambda: HashRouter(EXPERTS, 10, 2, dim=DIM),
    "sparse mixer": lambda: SparseMixerRouter(DIM, EXPERTS),
    "zero computation": lambda: ZeroComputationExperts(make_experts(), num_zero=1, num_identity=1),
    "balanced hash": lambda: HashRouter(EXPERTS, 10, frequencies=torch.rand(10)),
    "expert choice": lambda: ExpertChoiceRouter(DIM, EXPERTS),
    "gate": lambda: Gate(DIM, EXPERTS),
    "ffn": make_experts,
    "dense": lambda: FFN(DIM, 5),
    "modules": lambda: ModuleExperts([nn.Identity()] * EXPERTS),
    "cross scale": lambda: CrossScaleExperts((2, 3), DIM, EXPERTS, depth=1),
    "scales": lambda: CrossScaleAttention((2, 3), DIM),
    "cross attention": lambda: BidirectionalCrossAttention(8, num_heads=2),
    "modality gate": lambda: ModalityGate((3, 4)),
    "soft": lambda: SoftMoE(DIM, make_experts()),
}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("top-k", "num_experts", 8),
        ("top-k", "input_ndim", 0),
        ("top-k", "num_groups", 2),
        ("top-k in groups", "topk_groups", 2),
        ("hard", "num_experts", 8),
        ("hard", "top_k", 2),
        ("hash", "top_k", 2),
        ("top-k in groups", "group_score", "max"),
        ("hash", "frequencies", torch.ones(10)),
        ("hash with learned gates", "takes_tokens", False),
        ("sparse mixer", "num_experts", 8),
        ("zero computation", "num_identity", 2),
        ("zero computation", "num_experts", 8),
        ("balanced hash", "frequencies", torch.ones(10)),
        ("expert choice", "top_k", 1),
        ("gate", "dim", 7),
        ("ffn", "dim", 7),
        ("ffn", "hidden_dim", 7),
        ("ffn", "num_experts", 8),
        ("ffn", "out_dim", 7),
        ("dense", "dim", 7),
        ("modules", "num_experts", 8),
        ("modules", "token_ndim", 3),
        ("cross scale", "num_experts", 8),
        ("cross scale", "channels", (3, 3)),
        ("cross scale", "dim", 7),
        ("cross scale", "align_to", 0),
        ("cross scale", "scales", (0,)),
        ("cross scale", "takes_pyramid", False),
        ("scales", "hidden_dim", 2),
        ("cross attention", "num_heads", 4),
        ("cross attention", "tie_projections", True),
        ("modality gate", "widths", (4, 3)),
        ("modality gate", "per", "modality"),
        ("soft", "dim", 7),
        ("soft", "slots_per_expert", 2),
        ("soft", "normalize", False),
    ],
)
def test_what_weights_were_built_for_is_read_only(name, setting, value):
    module = MODULES[name]()
    before = getattr(module, setting)
    with pytest.raises(
        AttributeError, match=f"{setting}(=.*)? of {type(module).__name__} is fixed once it is built, got"
    ):
        setattr(module, setting, value)
    assert getattr(module, setting) is before
    setattr(module, setting, before)  # the same value changes nothing


@pytest.mark.parametrize("name", MODULES)
def test_copies_stay_read_only(name):
    for other in (copy.deepcopy(MODULES[name]()), pickle.loads(pickle.dumps(MODULES[name]()))):
        setting = next(name for name in ("dim", "num_experts", "widths") if hasattr(other, name))
        with pytest.raises(AttributeError, match="is fixed once it is built"):
            setattr(other, setting, 99)


def test_settings_of_a_top_k_router_take_effect():
    x = torch.randn(7, DIM)
    for changes in (
        {"top_k": 1},
        {"top_k": 3},
        {"scoring": "sigmoid"},
        {"scoring": "topk_softmax"},
        {"renormalize": False},
        {"scaling_factor": 2.5},
        {"impl": "reference"},
    ):
        router = make_router()
        for name, value in changes.items():
            setattr(router, name, value)
        built = make_router(**changes)
        mine, theirs = router(x), built(x)
        assert router.renormalize == built.renormalize
        assert torch.equal(mine.gates, theirs.gates)
        assert torch.equal(mine.expert_ids, theirs.expert_ids)


def test_a_refused_setting_of_a_top_k_router_changes_no_decision():
    x, router = torch.randn(7, DIM), make_router()
    before = router(x)
    for name, value in (("top_k", 5), ("scoring", "tanh"), ("jitter", 2.0)):
        with pytest.raises(ValueError, match=name):
            setattr(router, name, value)
        assert torch.equal(router(x).gates, before.gates)


def test_the_default_of_renormalize_follows_top_k():
    router = make_router(top_k=1)
    assert not router.renormalize
    router.top_k = 2
    assert torch.allclose(router(torch.randn(5, DIM)).gates.sum(-1), torch.ones(5))
    fixed = make_router(renormalize=False)
    fixed.top_k = 3
    assert not fixed.renormalize


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        ("top-k", "top_k", 5, "top_k must be between 1 and num_experts=4, got 5"),
        ("top-k", "scoring", "tanh", "scoring must be one of 'softmax', .* got 'tanh'"),
        ("top-k", "jitter", 1.5, r"jitter must be in \[0, 1\), got 1.5"),
        ("top-k", "impl", "cuda", "impl must be one of .* got 'cuda'"),
        ("top-k in groups", "top_k", 3, "topk_groups=1 groups of 2 experts hold fewer than top_k=3"),
        ("top-k in groups", "renormalize", True, "top_k=1 with renormalised gates makes every gate 1"),
        ("sparse mixer", "top_k", 5, "top_k must be between 1 and num_experts=4, got 5"),
        ("sparse mixer", "epsilon", -1.0, r"epsilon must be at least 0, got -1\.0"),
        ("hash", "scoring", "sigmoid", "scoring, renormalize and scaling_factor describe learned gates"),
        ("hash with learned gates", "scoring", "tanh", "scoring must be one of .* got 'tanh'"),
        ("hard", "gradient", "reinforce", "gradient must be one of 'scale', .* got 'reinforce'"),
        ("ffn", "activation", "gelu", "activation must be a gated one, as the weights were built for, got 'gelu'"),
        ("ffn", "activation", "mish", "activation must be one of .* got 'mish'"),
        ("ffn", "impl", "cuda", "impl must be one of .* got 'cuda'"),
        ("ffn", "recompute", "some", "recompute must be one of .* got 'some'"),
        ("dense", "activation", "relu", "activation must be a gated one, as the weights were built for, got 'relu'"),
        ("cross scale", "batching", "eager", "batching must be one of .* got 'eager'"),
        ("scales", "logits_at", "finest", "logits_at must be one of 'own', 'aligned', got 'finest'"),
        ("scales", "align_to", 2, "align_to must be the index of one of the 2 maps, got 2"),
        ("cross attention", "dropout", 1.0, r"dropout must lie in \[0, 1\), got 1.0"),
        ("expert choice", "capacity_factor", 0.0, r"capacity_factor must be in \(0, num_experts=4\], got 0.0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_the_old_one_stays(name, setting, value, message):
    module = MODULES[name]()
    before = getattr(module, setting)
    with pytest.raises(ValueError, match=message):
        setattr(module, setting, value)
    assert getattr(module, setting) == before


def test_an_activation_of_the_same_rows_takes_effect():
    x = torch.randn(5, DIM)
    moe = SparseMoE(make_router(), make_experts(activation="swiglu"))
    built = SparseMoE(make_router(), make_experts(activation="geglu"))
    moe.experts.activation = "geglu"
    assert torch.equal(moe(x).output, built(x).output)
    torch.manual_seed(0)
    plain = FFN(DIM, 5, activation="relu")
    plain.activation = torch.tanh
    assert torch.equal(plain(x), plain.down_proj(plain.up_proj(x).tanh()))
    with pytest.raises(ValueError, match="activation must be one that is not gated, as the weights were built for"):
        plain.activation = "swiglu"


def test_a_capacity_set_later_takes_effect():
    x, mask = torch.randn(40, DIM), torch.arange(40) < 30
    for masked in (None, mask):
        moe = SparseMoE(make_router(), make_experts())
        for factor in (0.25, 8.0, None, 0.5):
            moe.capacity_factor = factor
            built = SparseMoE(make_router(), make_experts(), capacity_factor=factor)
            mine, theirs = moe(x, mask=masked), built(x, mask=masked)
            assert torch.equal(mine.output, theirs.output)
            assert mine.stats.dropped_per_expert.tolist() == theirs.stats.dropped_per_expert.tolist()
            assert repr(moe) == repr(built)
    assert mine.stats.dropped_per_expert.sum() > 0


def test_the_capacity_follows_top_k_and_a_replayed_routing():
    x = torch.randn(40, DIM)
    moe = SparseMoE(make_router(), make_experts(), capacity_factor=1.0)
    moe.router.top_k = 1
    built = SparseMoE(make_router(top_k=1), make_experts(), capacity_factor=1.0)
    assert torch.equal(moe(x).stats.dropped_per_expert, built(x).stats.dropped_per_expert)


def test_a_drop_policy_set_later_takes_effect_or_is_refused():
    x = torch.randn(40, DIM)
    moe = SparseMoE(make_router(), make_experts(), capacity_factor=0.5)
    by_position = moe(x).output
    moe.drop_policy = "gate"
    built = SparseMoE(make_router(), make_experts(), capacity_factor=0.5, drop_policy="gate")
    assert torch.equal(moe(x).output, built(x).output)
    assert not torch.equal(moe(x).output, by_position)
    with pytest.raises(ValueError, match="drop_policy must be one of 'position', 'gate', got 'oldest'"):
        moe.drop_policy = "oldest"
    with pytest.raises(ValueError, match="capacity_factor must be positive, or None for no limit, got -1"):
        moe.capacity_factor = -1
    assert (moe.drop_policy, moe.capacity_factor) == ("gate", 0.5)
    with pytest.raises(ValueError, match="capacity_factor of an expert-choice layer belongs to its router"):
        SparseMoE(ExpertChoiceRouter(DIM, EXPERTS), make_experts()).capacity_factor = 1.0


def test_a_schedule_of_the_capacity_compiles_once_for_each_value():
    x = torch.randn(40, DIM)
    moe = SparseMoE(make_router(), make_experts(), capacity_factor=0.5)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    for factor in (0.5, 2.0):
        moe.capacity_factor = factor
        assert torch.allclose(compiled(x).output, moe(x).output, atol=1e-6)
