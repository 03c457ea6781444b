"""Laws of divided experts: losses and all gradients are those of one process."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit import CrossScaleExperts, HardRouter, SparseMoE
from moekit.distributed import average_gradients_, expert_parallel_
from tests.moekit.distributed.cases import Case, Result, on_rank, one_process
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow

DIVISIONS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
EXCHANGES: dict[str, dict[str, Any]] = {
    "exact": {},
    "two stages": {"two_stage": True},
    "deduplicated": {"deduplicate": True},
    "deduplicated in two stages": {"deduplicate": True, "two_stage": True},
    "three micro-batches": {"micro_batches": 3},
    "two micro-batches in two stages": {"micro_batches": 2, "two_stage": True},
}


def assert_same(expected: Result, results: list[Result | None], tolerance: float) -> None:
    """Of all ranks together: outputs and their gradients by rank, gradients of parameters of each."""
    options = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    for rank, result in enumerate(results):
        if result is None:
            continue
        torch.testing.assert_close(result.outputs[0], expected.outputs[rank], **options)
        torch.testing.assert_close(result.inputs[0], expected.inputs[rank], **options)
        torch.testing.assert_close(result.stats, expected.stats, **options)
        for name, gradient in result.gradients.items():
            reference = expected.gradients[name]
            if gradient is None or reference is None:
                assert (gradient if reference is None else reference) is None or not gradient.any(), name
            else:
                torch.testing.assert_close(
                    gradient, reference, msg=lambda text, name=name: f"{name}: {text}", **options
                )
    held = {name for result in results if result is not None for name in result.gradients}
    assert held == set(expected.gradients)


@st.composite
def drawn_cases(draw: st.DrawFn) -> tuple[Case, tuple[int, int], str]:
    data, experts = draw(st.sampled_from(DIVISIONS))
    router = draw(st.sampled_from(["top_k", "dynamic", "mixer", "expert_choice", "hard"]))
    token_choice = router != "expert_choice"
    layer = {}
    if token_choice and draw(st.booleans()):
        layer["capacity_factor"] = draw(st.sampled_from([0.5, 1.0, 1.5]))
        layer["drop_policy"] = draw(st.sampled_from(["position", "gate"]))
    elif token_choice and draw(st.booleans()):
        layer["gates_on"] = "inputs"
    case = Case(
        sizes=tuple(draw(st.lists(st.integers(0, 9), min_size=data * experts, max_size=data * experts))),
        num_experts=draw(st.sampled_from([4, 7, 8])),
        top_k=draw(st.integers(1, 4)),
        router=router,
        experts=draw(st.sampled_from(["ffn", "ffn_bias", "modules", "zero_computation"])),
        layer=layer,
        masked=draw(st.booleans()),
        nonfinite=router == "top_k" and draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    exchange = draw(st.sampled_from([name for name in EXCHANGES if experts % 2 == 0 or "two" not in name]))
    return case, (data, experts), exchange


@settings(max_examples=60)
@given(drawn_cases())
def test_a_step_is_that_of_one_process_with_all_tokens(ranks: Ranks, drawn) -> None:
    case, division, exchange = drawn
    assert_same(one_process(case), ranks.run(on_rank, case, *division, EXCHANGES[exchange]), 1e-10)


def test_float32_and_the_bits_of_a_second_run(ranks: Ranks) -> None:
    case = Case(sizes=(9, 0, 17, 4), top_k=3, dtype=torch.float32)
    first, second = (ranks.run(on_rank, case, 2, 2, {}) for _ in range(2))
    assert_same(one_process(case), first, 1e-5)
    for one, other in zip(first, second, strict=True):
        for name, gradient in one.gradients.items():
            assert torch.equal(gradient, other.gradients[name]), name
        assert torch.equal(one.outputs[0], other.outputs[0])


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_four_ranks_of_experts_beside_two_of_data(eight_ranks: Ranks, exchange: str) -> None:
    case = Case(sizes=(3, 9, 0, 4, 8, 1, 0, 5), top_k=3, experts="ffn_bias", masked=True)
    assert_same(one_process(case), eight_ranks.run(on_rank, case, 2, 4, EXCHANGES[exchange]), 1e-10)


@pytest.mark.parametrize("options", [{}, {"deduplicate": True}])
def test_rows_in_half_precision_on_the_way(ranks: Ranks, options: dict) -> None:
    case = Case(sizes=(9, 5, 7, 4), dtype=torch.float32)
    expected = one_process(case)
    rounded = ranks.run(on_rank, case, 1, 4, {"wire_dtype": torch.bfloat16, **options})
    assert_same(expected, rounded, 0.05)
    assert not torch.equal(rounded[0].outputs[0], expected.outputs[0])


def test_gradients_of_the_sum_of_all_losses(ranks: Ranks) -> None:
    case = Case(sizes=(9, 5, 7, 4))
    means = ranks.run(on_rank, case, 1, 4, {})
    sums = ranks.run(on_rank, case, 1, 4, {"gradients": "sum"})
    for mean, total in zip(means, sums, strict=True):
        for name, gradient in mean.gradients.items():
            factor = 4 if name.startswith("experts.") else 1
            torch.testing.assert_close(total.gradients[name], factor * gradient)
        torch.testing.assert_close(total.inputs[0], mean.inputs[0])


def _pyramid_step(data: int, experts: int) -> tuple[Tensor, list[Tensor], dict[str, Tensor]] | None:
    """One step of experts over pyramids: on ranks, or in one process where ``experts`` is 0."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64}
    bank = CrossScaleExperts((3, 4), 5, num_experts=4, depth=1, norm="group", groups=1, **options)
    layer = SparseMoE(HardRouter(2, 4, **options), bank)
    torch.nn.init.normal_(layer.router.gate.layers[-1].weight)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for size in (3, 0, 5, 2):
        maps = [torch.randn(size, c, s, s, generator=generator, **options) for c, s in ((3, 4), (4, 2))]
        batches.append((maps, torch.randn(size, 2, generator=generator, **options)))
    chosen = batches
    if experts:
        expert_parallel_(layer, division(data, experts).mesh["ep"])
        chosen = [batches[torch.distributed.get_rank()]]
    outputs = []
    for maps, context in chosen:
        leaves = [each.requires_grad_() for each in maps]
        outputs.append(layer(leaves, router_input=context).output)
    torch.stack([output.sin().sum() for output in outputs]).sum().div(4).backward()
    if experts:
        average_gradients_(layer, data_group=division(data, experts).mesh["dp"].get_group())
    inputs = [each.grad for maps, _ in chosen for each in maps]
    return torch.cat(outputs).detach(), inputs, {name: each.grad for name, each in layer.named_parameters()}


def test_experts_over_pyramids(ranks: Ranks) -> None:
    output, inputs, gradients = _pyramid_step(1, 0)
    results = ranks.run(_pyramid_step, 2, 2)
    torch.testing.assert_close(torch.cat([each[0] for each in results]), output, rtol=0, atol=1e-12)
    for rank, (_, own, held) in enumerate(results):
        for mine, theirs in zip(own, inputs[2 * rank : 2 * rank + 2], strict=True):
            if mine is not None and mine.numel():
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        for name, gradient in held.items():
            expected = gradients[name]
            assert (gradient is None) == (expected is None), name
            if gradient is not None:
                # The sum of four losses, divided by four in each: ranks average what one process adds up.
                torch.testing.assert_close(4 * gradient, expected, rtol=0, atol=1e-12)
