"""Statistics of layers whose modules return one tensor: with gradients, once per call, also compiled."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moekit import load_balancing_loss
from moekit.inspect import StatsCollector
from moekit.interop import collect_stats, upcycle_
from tests.moekit.interop.mlps import Model, tokens

NAMES = ["blocks.0.mlp.moe", "blocks.1.mlp.moe"]


def upcycled() -> Model:
    model = Model()
    upcycle_(model, "blocks.*.mlp", num_experts=4, top_k=2)
    return model


def loss_of(stats: dict) -> torch.Tensor:
    return torch.stack([load_balancing_loss(each) for each in stats.values()]).sum()


def router_gradients(model: Model) -> list[torch.Tensor]:
    return [block["mlp"].moe.router.gate.layers[0].weight.grad for block in model.blocks]


def test_losses_of_the_statistics_train_the_routers() -> None:
    model, x = upcycled(), tokens()
    with collect_stats(model) as stats:
        model(x)
    assert list(stats) == NAMES
    direct = model.blocks[0]["mlp"].moe(model.blocks[0]["norm"](x)).stats
    assert all(torch.equal(mine, its) for mine, its in zip(stats[NAMES[0]], direct, strict=True))
    loss_of(stats).backward()
    assert all(gradient.abs().sum() > 0 for gradient in router_gradients(model))


def test_calls_add_up_and_clear_starts_again() -> None:
    model = upcycled()
    with collect_stats(model) as stats:
        model(tokens(3))
        model(tokens(4))
        assert [int(each.num_tokens) for each in stats.values()] == [7, 7]
        stats.clear()
        model(tokens(2))
    model(tokens(5))
    assert [int(each.num_tokens) for each in stats.values()] == [2, 2]
    collector = StatsCollector()
    collector.add(stats)
    assert [each.tokens for each in collector.summaries()] == [2, 2]


def test_in_evaluation_too_and_nothing_stays_on_the_layers() -> None:
    model = upcycled().eval()
    with collect_stats(model) as stats:
        model(tokens(3))
    assert int(stats[NAMES[0]].num_tokens) == 3
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("in_context", [True, False])
def test_activation_checkpointing_counts_once(in_context: bool) -> None:
    model, plain, x = upcycled(), upcycled(), tokens()
    plain.load_state_dict(model.state_dict())
    with collect_stats(plain) as expected:
        output = plain(x)
    (output.sum() + loss_of(expected)).backward()
    with collect_stats(model) as stats:
        output = checkpoint(model, x, use_reentrant=False)
        if in_context:
            (output.sum() + loss_of(stats)).backward()
    if not in_context:
        (output.sum() + loss_of(stats)).backward()
    assert [int(each.num_tokens) for each in stats.values()] == [15, 15]
    for mine, its in zip(router_gradients(model), router_gradients(plain), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def test_in_compiled_models_the_context_stays_open_over_the_steps() -> None:
    model, x = upcycled(), tokens()
    with collect_stats(model) as expected:
        model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with collect_stats(model) as stats:
        for _ in range(2):
            stats.clear()
            compiled(x)
            assert torch.equal(stats[NAMES[1]].tokens_per_expert, expected[NAMES[1]].tokens_per_expert)
            loss_of(stats).backward()
    assert all(gradient.abs().sum() > 0 for gradient in router_gradients(model))


def test_a_model_without_layers_is_an_error() -> None:
    message = "model must hold a SparseMoE, got a Linear without any: upcycle it first"
    with pytest.raises(ValueError, match=message), collect_stats(nn.Linear(2, 2)):
        pass


def test_a_model_that_reports_nothing_is_an_error() -> None:
    model = upcycled()
    compiled = torch.compile(model, backend="eager")
    compiled(tokens())
    message = "got a Model whose layers reported nothing: if it is compiled, open the context before its first call"
    with pytest.raises(ValueError, match=message), collect_stats(model):
        compiled(tokens())
    with pytest.raises(KeyError), collect_stats(model):  # an error in the block is not hidden
        raise KeyError
