"""The rate of loss-free balancing falls from a large one to that of the paper."""

import itertools

import pytest
import torch

from moekit import TopKRouter, bias_update_rate


def test_it_falls_from_the_first_rate_to_the_last() -> None:
    rates = [bias_update_rate(step, start=0.1, end=0.01, num_steps=10) for step in range(15)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.1**1.5)
    assert rates[10:] == pytest.approx([0.01] * 5)
    assert all(one > other for one, other in itertools.pairwise(rates[:11]))
    assert bias_update_rate(0, end=0.02, num_steps=0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"step": 0, "num_steps": -2}, "num_steps must be at least 0, got -2"),
        ({"step": 0, "start": 0.0}, "start must be a positive rate, got 0.0"),
        ({"step": 0, "end": float("nan")}, "end must be a positive rate, got nan"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_update_rate(**arguments)


def test_it_balances_skewed_tokens_where_the_constant_rate_has_not_yet() -> None:
    def violation_after(steps: int, first: float) -> float:
        torch.manual_seed(0)
        router = TopKRouter(16, 16, 2, scoring="sigmoid", selection_bias=True, init_scale=1.0)
        common = torch.randn(16)
        ratios = []
        for step in range(steps):
            with torch.no_grad():
                counts = router(torch.randn(512, 16) + common).expert_ids.flatten().bincount(minlength=16)
            ratios.append(float(counts.max() / counts.float().mean()))
            router.update_bias_(counts, rate=bias_update_rate(step, start=first))
        return sum(ratios[-10:]) / 10

    assert violation_after(60, first=1e-2) < 1.5 < 2.0 < violation_after(60, first=1e-3)
