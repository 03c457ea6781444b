"""The loss of balance within each sequence, against a loop over sequences."""

import pytest
import torch
from torch import Tensor

from moekit import (
    ExpertChoiceRouter,
    HardRouter,
    TopKRouter,
    load_balancing_loss,
    plan_dispatch,
    router_stats,
    sequence_balancing_loss,
)


def naive(probs: Tensor, top_k: int, mask: Tensor) -> Tensor:
    """Equations 17 to 20 as they are printed, sequence by sequence."""
    losses = []
    for rows, real in zip(probs, mask, strict=True):
        rows = rows[real]
        if not len(rows):
            continue
        length, experts = rows.shape
        total = probs.new_zeros(())
        for expert in range(experts):
            chosen = sum(expert in row.topk(top_k).indices for row in rows)
            total = total + experts / (top_k * length) * chosen * rows[:, expert].mean()
        losses.append(total)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_it_is_that_of_a_loop_over_sequences_with_its_gradient(scoring: str) -> None:
    router = TopKRouter(6, 5, 2, scoring=scoring, selection_bias=True, dtype=torch.float64, init_scale=4.0)
    router.selection_bias.uniform_(-1, 1)
    mask = torch.rand(4, 7) > 0.3
    mask[2] = False
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    weight = router.gate.layers[0].weight
    loss = sequence_balancing_loss(router(x.flatten(0, 1)), 4, mask=mask)
    expected = naive(router(x.flatten(0, 1)).probs.view(4, 7, 5), 2, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, weight)[0] for each in (loss, expected)))


def test_one_sequence_is_the_batch() -> None:
    router = TopKRouter(6, 5, 2)
    routing = router(torch.randn(9, 6))
    stats = router_stats(routing, plan_dispatch(routing.expert_ids, 5))
    torch.testing.assert_close(sequence_balancing_loss(routing, 1), load_balancing_loss(stats))


def test_values_at_balance_and_at_collapse() -> None:
    router = HardRouter(6, 4, init_scale=0.0)
    torch.testing.assert_close(sequence_balancing_loss(router(torch.randn(8, 6)), 2), torch.tensor(1.0))
    logits = torch.zeros(8, 4)
    logits[:, 2] = 100.0
    certain = TopKRouter(6, 4, 1, gate=torch.nn.Embedding.from_pretrained(logits))(torch.arange(8))
    torch.testing.assert_close(sequence_balancing_loss(certain, 2), torch.tensor(4.0))
    # Each sequence has an expert of its own: the batch is in balance, the sequences are not.
    own = 100 * torch.eye(4).repeat_interleave(2, dim=0)
    each = TopKRouter(6, 4, 1, gate=torch.nn.Embedding.from_pretrained(own))(torch.arange(8))
    torch.testing.assert_close(sequence_balancing_loss(each, 4), torch.tensor(4.0))
    torch.testing.assert_close(sequence_balancing_loss(each, 1), torch.tensor(1.0))


def test_tokens_that_are_not_finite_and_empty_batches_do_not_count() -> None:
    router = TopKRouter(6, 5, 2)
    x = torch.randn(8, 6)
    mask = torch.arange(8) != 3
    expected = sequence_balancing_loss(router(x), 2, mask=mask)
    x[3] = torch.nan
    torch.testing.assert_close(sequence_balancing_loss(router(x), 2), expected)
    assert sequence_balancing_loss(router(x), 2, mask=torch.zeros(8, dtype=torch.bool)) == 0
    assert sequence_balancing_loss(router(x[:0]), 2) == 0


def test_wrong_arguments_are_refused() -> None:
    routing = TopKRouter(6, 5, 2)(torch.randn(8, 6))
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"num_sequences must divide the 8 tokens of the routing.*got {number}"):
            sequence_balancing_loss(routing, number)
    with pytest.raises(ValueError, match="mask must be a bool tensor of shape"):
        sequence_balancing_loss(routing, 2, mask=torch.ones(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="routing must be of token choice, got expert choice"):
        sequence_balancing_loss(ExpertChoiceRouter(6, 4)(torch.randn(8, 6)), 2)
    with pytest.raises(ValueError, match=r"routing must have probs, got a routing without: use TopKRouter"):
        sequence_balancing_loss(TopKRouter(6, 5, 2, return_logits=False)(torch.randn(8, 6)), 2)
