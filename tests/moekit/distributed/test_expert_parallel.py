"""Laws of divided experts: losses and all gradients are those of one process."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.moekit.distributed.cases import Case, Result, on_rank, one_process
from tests.moekit.distributed.ranks import Ranks

pytestmark = pytest.mark.slow

DIVISIONS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
EXCHANGES: dict[str, dict[str, Any]] = {
    "exact": {},
    "two stages": {"two_stage": True},
    "deduplicated": {"deduplicate": True},
    "deduplicated in two stages": {"deduplicate": True, "two_stage": True},
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
                torch.testing.assert_close(gradient, reference, msg=lambda text, name=name: f"{name}: {text}", **options)
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
