"""Recording counts what was routed, and changes nothing of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekit import FFNExperts, HashRouter, RouterStats, SoftMoE, SparseMoE, router_entropy
from moekit.inspect import record_routing
from moekit.observers import observed
from tests.moekit.inspect.models import DIM, MODELS, NUM_EXPERTS, Residual, experts, stack

KINDS = sorted(MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_recording_changes_no_bit_of_outputs_gradients_and_random_numbers(kind: str) -> None:
    model = MODELS[kind]()
    x = torch.randn(3, 5, DIM)

    def step() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        output = model(inputs)
        output.square().sum().backward()
        assert inputs.grad is not None
        gradients = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
        return [output.detach(), inputs.grad, torch.rand(3), *gradients]

    before = step()
    with record_routing(model):
        during = step()
    assert all(torch.equal(one, other) for one, other in zip(before, during, strict=True))
    assert not observed()


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_loads_are_the_slots_and_those_of_the_statistics(kind: str) -> None:
    model = MODELS[kind]().eval()
    stats: dict[str, list[RouterStats]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseMoE):
            module.register_forward_hook(lambda _, __, output, name=name: stats.setdefault(name, []).append(output[1]))
    with record_routing(model) as record, torch.no_grad():
        for _ in range(5):
            model(torch.randn(3, 7, DIM))
    assert set(record.layers) == set(stats)
    for name, layer in record.layers.items():
        total = sum(stats[name])
        assert isinstance(total, RouterStats)
        assert torch.equal(layer.load.sum(0), total.tokens_per_expert.double())
        assert torch.equal(layer.dropped.sum(0), total.dropped_per_expert.double())
        assert layer.column("tokens").sum() == total.num_tokens
        assert layer.column("calls").sum() == len(stats[name])
        # The layer sums in float32, the record in float64.
        torch.testing.assert_close(layer.prob_sum.float(), total.prob_sum)
        torch.testing.assert_close(layer.column("entropy_sum").sum().float(), total.entropy_sum)
        assert torch.equal(layer.by_label[-1], layer.load.sum(0))
        assert torch.equal(layer.coactivation, layer.coactivation.T)
        assert torch.equal(layer.coactivation.diagonal(), layer.load.sum(0))
        if layer.top_k:
            assert layer.load.sum() == layer.top_k * total.num_tokens
            # Each token of an expert is a token of K - 1 others.
            torch.testing.assert_close(layer.coactivation.sum(-1), layer.top_k * layer.load.sum(0))


def test_figures_are_those_of_the_router() -> None:
    layer = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2)
    x = torch.randn(50, DIM)
    with record_routing(layer) as record:
        stats = layer(x).stats.detach()
    (figures,) = record.summaries()
    probs, load = layer.route(x).probs, stats.tokens_per_expert.double()
    assert probs is not None
    share = load / load.sum()
    assert figures.max_violation == pytest.approx(float(load.max() / load.mean()) - 1)
    most = torch.tensor(float(NUM_EXPERTS)).log().item()
    assert figures.load_entropy == pytest.approx(float(-(share * share.log()).sum()) / most)
    assert figures.prob_entropy == pytest.approx(float(router_entropy(stats)) / most, rel=1e-5)
    assert figures.confidence == pytest.approx(float(probs.detach().max(-1).values.mean()), rel=1e-5)
    assert (figures.busiest, figures.dead_experts) == (int(load.argmax()), int((load == 0).sum()))


def test_coactivation_counts_the_tokens_that_chose_both() -> None:
    layer = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2)
    x = torch.randn(40, DIM)
    with record_routing(layer) as record, torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(10):  # more tokens than bfloat16 counts exactly
            layer(x)
        chosen = layer.route(x).expert_ids
    expected = torch.zeros(NUM_EXPERTS, NUM_EXPERTS, dtype=torch.float64)
    for i, j in chosen.tolist():
        expected[i, j] += 10
        expected[j, i] += 10
        expected[i, i] += 10
        expected[j, j] += 10
    assert torch.equal(record.layers["SparseMoE"].coactivation, expected)


def test_a_hash_router_and_a_soft_mixture_are_recorded_as_far_as_they_route() -> None:
    hashed, soft = SparseMoE(HashRouter(NUM_EXPERTS, 20, 2), experts()), SoftMoE(DIM, FFNExperts(DIM, DIM, NUM_EXPERTS))
    with record_routing(nn.ModuleDict({"hash": hashed, "soft": soft})) as record:
        hashed(torch.randn(6, DIM), router_input=torch.arange(6))
        soft(torch.randn(2, 6, DIM))
    of_hash, of_soft = record.summaries()
    assert (of_hash.name, of_hash.confidence, of_hash.slots) == ("hash", 0.5, 12)
    assert (of_soft.name, of_soft.max_violation, of_soft.slots) == ("soft", 0.0, 2 * NUM_EXPERTS)
    assert not record.layers["soft"].coactivation.any()
    torch.testing.assert_close(record.layers["soft"].by_label.sum(), torch.tensor(12.0, dtype=torch.float64))


def test_padding_and_tokens_that_are_not_finite_are_not_counted() -> None:
    layer = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2)
    x, mask = torch.randn(2, 6, DIM), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3:] = False
    x[0, 4], x[1, 1] = torch.nan, torch.inf
    with record_routing(layer) as record:
        layer(x, mask=mask)
    (figures,) = record.summaries()
    assert (figures.tokens, figures.slots, figures.nonfinite_tokens) == (8, 16, 1)
    assert figures.prob_entropy is not None
    assert 0 < figures.prob_entropy < 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_counted_once(reentrant: bool) -> None:
    model = stack()
    x = torch.randn(3, 5, DIM, requires_grad=True)
    with record_routing(model) as record:
        for _ in range(3):
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert [each.calls for each in record.summaries()] == [3, 3]


def test_inference_mode_and_bfloat16() -> None:
    model = stack().bfloat16()
    x = torch.randn(3, 5, DIM, dtype=torch.bfloat16)
    with record_routing(model) as record:
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
        model(x)
    assert [each.slots for each in record.summaries()] == [90, 90]


def test_compiled_models_run_eagerly_while_they_are_recorded() -> None:
    model = stack()
    x = torch.randn(3, 5, DIM)
    frames: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        def run(*inputs: Tensor) -> object:
            frames.append(1)
            return graph.forward(*inputs)

        return run

    compiled = torch.compile(model, backend=backend)
    compiled(x)
    of_one_call = len(frames)
    with record_routing(compiled) as record:
        compiled(x)
    assert len(frames) == of_one_call
    assert list(record.layers) == ["0.moe", "1.moe"]
    compiled(x)
    assert len(frames) == 2 * of_one_call


def test_layers_of_other_models_are_not_recorded() -> None:
    model, other = stack(1), stack(1)
    with record_routing(model) as record:
        model(torch.randn(3, DIM))
        other(torch.randn(300, DIM))
    assert [each.tokens for each in record.summaries()] == [3]


def test_layers_stand_in_the_order_of_the_model() -> None:
    model = stack(3)
    with record_routing(model) as record:
        for layer in reversed(list(model)):
            layer(torch.randn(3, DIM))
    assert list(record.layers) == ["0.moe", "1.moe", "2.moe"]


def test_two_records_at_once_count_the_same() -> None:
    model = stack(1)
    with record_routing(model) as outer, record_routing(model) as inner:
        model(torch.randn(3, DIM))
    assert outer.summaries() == inner.summaries()


def test_a_record_without_any_routing_is_an_error() -> None:
    expected = r"model must hold layers of moekit.*got a Linear that reported no routing"
    with pytest.raises(ValueError, match=expected), record_routing(nn.Linear(2, 2)):
        pass
    assert not observed()


def test_an_error_inside_ends_the_recording_and_passes() -> None:
    with pytest.raises(RuntimeError, match="inside"), record_routing(stack()):
        raise RuntimeError("inside")
    assert not observed()


def test_the_number_of_windows_is_checked() -> None:
    expected = r"max_windows must be even and at least 2.*got 3"
    with pytest.raises(ValueError, match=expected), record_routing(stack(), max_windows=3):
        pass


def test_names_are_those_of_the_model_without_its_wrapper_for_ranks(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(stack())
        with record_routing(model) as record:
            model(torch.randn(3, DIM)).sum().backward()
        assert list(record.layers) == ["0.moe", "1.moe"]
    finally:
        dist.destroy_process_group()


def test_shared_modules_keep_one_name() -> None:
    layer = Residual(SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 1))
    with record_routing(nn.Sequential(layer, layer)) as record:
        nn.Sequential(layer, layer)(torch.randn(3, DIM))
    assert [(each.name, each.calls) for each in record.summaries()] == [("0.moe", 2)]
