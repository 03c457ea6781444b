"""Supervision of the router's own logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from moekit import HardRouter, HashRouter, router_label_loss
from tests.oracles import assert_close
from tests.strategies import few


@few
@given(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=0, max_size=8), st.integers(0, 2**31))
def test_it_is_the_mean_over_labelled_tokens(labels, seed) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(labels), 3, dtype=torch.float64, requires_grad=True)
    loss = router_label_loss(logits, torch.tensor(labels, dtype=torch.int64))
    terms = [-logits[t].log_softmax(0)[label] for t, label in enumerate(labels) if label != -100]
    expected = torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)
    assert_close(loss, expected)
    loss.backward()
    ignored = torch.tensor([label == -100 for label in labels], dtype=torch.bool)
    assert not logits.grad[ignored].any()
    assert logits.grad.isfinite().all()


def test_values_shapes_and_dtypes() -> None:
    assert_close(
        router_label_loss(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.int32)), torch.tensor(math.log(4))
    )
    half = torch.randn(5, 4, dtype=torch.bfloat16)
    labels = torch.tensor([0, 1, 2, 3, 7])
    loss = router_label_loss(half, labels, ignore_index=7)
    assert loss.dtype == torch.float32
    assert_close(loss, F.cross_entropy(half.float()[:4], labels[:4]))


def test_nothing_labelled_is_zero_with_a_zero_gradient() -> None:
    router = HardRouter(6, 3, gradient="none")
    router_label_loss(router(torch.randn(4, 6)), torch.full((4,), -100)).backward()
    grad = router.gate.layers[0].weight.grad
    assert torch.equal(grad, torch.zeros_like(grad))


def test_it_trains_a_router_that_the_task_does_not() -> None:
    router = HardRouter(6, 3, gradient="none", gate_hidden_dim=16)
    x = torch.randn(64, 6)
    labels = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        router_label_loss(router(x), labels).backward()
        optimizer.step()
    assert (router(x).expert_ids[:, 0] == labels).float().mean() > 0.95


def test_tokens_whose_logits_are_not_finite_do_not_count() -> None:
    router = HardRouter(6, 3)
    x = torch.randn(4, 6)
    x[1] = torch.nan
    labels = torch.tensor([0, 1, 2, -100])
    loss = router_label_loss(router(x), labels)
    assert_close(loss, F.cross_entropy(router(x).logits[[0, 2]], labels[[0, 2]]))


def test_inputs_that_do_not_fit() -> None:
    logits, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="logits must be those of a router that computes and returns some, got a Routing without"
    ):
        router_label_loss(HashRouter(3, 10)(torch.arange(4)), labels)
    with pytest.raises(ValueError, match=r"logits must be router logits or a Routing, got a tuple: pass moe.route"):
        router_label_loss((logits,), labels)
    with pytest.raises(ValueError, match=r"labels must be of an integer dtype, got torch.float32"):
        router_label_loss(logits, labels.float())
    with pytest.raises(ValueError, match=r"labels must have one value per token, \(4,\), got shape \(3,\)"):
        router_label_loss(logits, labels[:3])
    with pytest.raises(ValueError, match=r"labels must have one value per token, \(4,\), got shape \(3,\)"):
        router_label_loss(HardRouter(6, 3)(torch.randn(4, 6)), labels[:3])
    with pytest.raises(ValueError, match="labels must be on the device of logits, cpu, got meta"):
        router_label_loss(logits, labels.to("meta"))
