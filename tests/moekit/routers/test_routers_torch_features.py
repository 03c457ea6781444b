"""Routers as modules: copies, state, precision, meta device, compilation and representation."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from moekit import (
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    Router,
    Routing,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
)

DIM, EXPERTS, TOKENS = 16, 8, 12
MAKERS = {
    "top_k": lambda **o: TopKRouter(DIM, EXPERTS, 2, selection_bias=True, gate_hidden_dim=4, gate_bias=True, **o),
    "noisy": lambda **o: TopKRouter(DIM, EXPERTS, 2, noisy=True, scoring="topk_softmax", **o),
    "grouped": lambda **o: TopKRouter(DIM, EXPERTS, 3, scoring="sigmoid", num_groups=4, topk_groups=2, **o),
    "grouped by maximum": lambda **o: TopKRouter(
        DIM, EXPERTS, 3, scoring="sqrt_softplus", num_groups=4, topk_groups=2, group_score="max", **o
    ),
    "sparse_mixer": lambda **o: SparseMixerRouter(DIM, EXPERTS, 3, epsilon=0.5, gate_hidden_dim=4, gate_bias=True, **o),
    "hard": lambda **o: HardRouter(DIM, EXPERTS, gradient="straight_through", **o),
    "expert_choice": lambda **o: ExpertChoiceRouter(DIM, EXPERTS, gate_hidden_dim=4, **o),
}
names = pytest.mark.parametrize("name", list(MAKERS))


def make_router(name: str, **options) -> Router:
    torch.manual_seed(0)
    router = MAKERS[name](**options)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    return router.eval()


def make_input(tokens: int = TOKENS) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(1))


def assert_same(mine: Routing, theirs: Routing) -> None:
    for a, b in zip(mine, theirs, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b)


@names
def test_copies_route_alike(name: str) -> None:
    router, x = make_router(name), make_input()
    if name == "top_k":
        router.selection_bias.copy_(torch.randn(EXPERTS))
    loaded = MAKERS[name]().eval()
    loaded.load_state_dict(router.state_dict(), strict=True)
    for other in (copy.deepcopy(router), pickle.loads(pickle.dumps(router)), loaded):
        assert_same(other(x), router(x))


def test_the_selection_bias_is_in_the_state_only_where_it_exists() -> None:
    assert "selection_bias" in make_router("top_k").state_dict()
    assert "selection_bias" not in make_router("grouped").state_dict()


@names
@pytest.mark.parametrize("tokens", [TOKENS, 30])
def test_compiles_to_one_graph(name: str, tokens: int) -> None:
    router = make_router(name)
    compiled = torch.compile(router, fullgraph=True, dynamic=True, backend="aot_eager")
    x = make_input(tokens)
    routing = compiled(x)
    assert_same(routing, router(x))
    routing.gates.square().sum().backward()
    grads = [p.grad.clone() for p in router.parameters() if p.grad is not None]
    router.zero_grad()
    router(x).gates.square().sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in router.parameters() if p.grad is not None])


@names
def test_half_precision_and_autocast_route_in_float32(name: str) -> None:
    router = make_router(name).to(torch.bfloat16)
    x = make_input().bfloat16()
    wide = copy.deepcopy(router).float()(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = router(x)
    for routing in (router(x), under_autocast):
        assert routing.gates.dtype == routing.probs.dtype == routing.logits.dtype == torch.float32
        assert_same(routing, wide)


@names
def test_builds_on_the_meta_device(name: str) -> None:
    router = make_router(name, device="meta")
    assert all(tensor.is_meta for tensor in router.state_dict().values())
    assert router(make_input().to("meta")).gates.is_meta
    router.to_empty(device="cpu").reset_parameters()
    assert router(make_input()).gates.isfinite().all()


@names
def test_reset_draws_the_weights_anew(name: str) -> None:
    router = make_router(name)
    before = [parameter.clone() for parameter in router.gate.parameters()]
    router.reset_parameters()
    assert not any(old.equal(new) for old, new in zip(before, router.gate.parameters(), strict=True))


def test_repr_names_the_options() -> None:
    assert repr(make_router("top_k")).startswith(
        "TopKRouter(\n  num_experts=8, top_k=2, scoring='softmax', renormalize=True, scaling_factor=1.0, jitter=0.0"
    )
    assert "num_experts=8, gradient='straight_through'" in repr(make_router("hard"))
    assert "num_experts=8, capacity_factor=2.0" in repr(make_router("expert_choice"))
    assert repr(HashRouter(4, 10, 2)) == "HashRouter(num_experts=4, vocab_size=10, top_k=2)"


def test_a_router_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Router()


def test_routing_by_context_exports_with_dynamic_batch_and_length() -> None:
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(6, EXPERTS, 2), FFNExperts(DIM, 4, EXPERTS)).eval()
    batch, length = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "length"))
    program = torch.export.export(
        layer,
        (torch.randn(2, 5, DIM),),
        {"router_input": torch.randn(2, 6)},
        dynamic_shapes={"x": {0: batch, 1: length}, "router_input": {0: batch}},
    )
    x, context = torch.randn(3, 9, DIM), torch.randn(3, 6)
    expected = layer(x, router_input=context).output
    torch.testing.assert_close(program.module()(x, router_input=context).output, expected)
