"""Gates, probabilities and statistics are float32 whatever the default dtype and the dtype of the weights."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moekit import (
    CrossScaleExperts,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    SoftMoE,
    SparseMoE,
    TopKRouter,
    importance_loss,
    load_balancing_loss,
    load_loss,
    mutual_information_loss,
    router_entropy,
    router_z_loss,
)

DIM, EXPERTS = 6, 4
LOSSES = (
    load_balancing_loss,
    importance_loss,
    load_loss,
    router_z_loss,
    router_entropy,
    mutual_information_loss,
)
LAYERS = {
    "top-k": lambda: SparseMoE.ffn(DIM, 5, EXPERTS, 2, shared_hidden_dim=3, capacity_factor=1.0),
    "noisy": lambda: SparseMoE(TopKRouter(DIM, EXPERTS, 2, noisy=True), FFNExperts(DIM, 5, EXPERTS)),
    "biased": lambda: SparseMoE(
        TopKRouter(DIM, EXPERTS, 2, scoring="sigmoid", selection_bias=True), FFNExperts(DIM, 5, EXPERTS)
    ),
    "hard": lambda: SparseMoE(HardRouter(DIM, EXPERTS), FFNExperts(DIM, 5, EXPERTS)),
    "hash": lambda: SparseMoE(HashRouter(EXPERTS, 20, top_k=3), FFNExperts(DIM, 5, EXPERTS)),
    "expert choice": lambda: SparseMoE(ExpertChoiceRouter(DIM, EXPERTS), FFNExperts(DIM, 5, EXPERTS)),
    "soft": lambda: SoftMoE(DIM, FFNExperts(DIM, 5, EXPERTS)),
    "pyramids": lambda: SparseMoE(HardRouter(DIM, EXPERTS), CrossScaleExperts((3, 4), 4, EXPERTS, depth=1)),
}


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def half(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The default dtype, as set while a half-precision model is built and run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def inputs_of(name: str, dtype: torch.dtype) -> tuple[Tensor | list[Tensor], dict[str, Tensor]]:
    if name == "pyramids":
        maps = [torch.randn(5, 3, 4, 4, dtype=dtype), torch.randn(5, 4, 2, 2, dtype=dtype)]
        return maps, {"router_input": torch.randn(5, DIM, dtype=dtype)}
    x = torch.randn(3, 5, DIM, dtype=dtype)
    return x, {"router_input": torch.arange(15).view(3, 5)} if name == "hash" else {}


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_and_losses_are_float32(name: str, half: torch.dtype) -> None:
    layer = LAYERS[name]()
    assert next(layer.parameters()).dtype == half
    x, options = inputs_of(name, half)
    output, stats = layer(x, **options)
    assert output.dtype == half
    assert {field.dtype for field in stats} == {torch.int64, torch.float32}
    assert all(loss(stats).dtype == torch.float32 for loss in LOSSES)
    if isinstance(layer, SparseMoE):
        routing = layer.route(x, **options)
        assert routing.gates.dtype == routing.probs.dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
def test_float32_weights_give_what_they_give_under_another_default(name: str, half: torch.dtype) -> None:
    torch.set_default_dtype(torch.float32)
    layer = LAYERS[name]().eval()
    x, options = inputs_of(name, torch.float32)
    expected = layer(x, **options)
    torch.set_default_dtype(half)
    changed = layer(x, **options)
    assert torch.equal(changed.output, expected.output)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(changed.stats, expected.stats, strict=True))


@pytest.mark.parametrize("name", ["top-k", "noisy", "biased", "hard", "hash", "expert choice", "soft"])
def test_gates_sum_to_one_more_exactly_than_half_precision_could(name: str, half: torch.dtype) -> None:
    x, options = inputs_of(name, half)
    stats = LAYERS[name]().eval()(x, **options).stats
    assert stats.prob_sum.sum().item() == pytest.approx(15, abs=1e-5)
