"""The kernels for few rows where most experts have none: programs counted by rows, and narrower strips of weights."""

import pytest
import torch

from moekit_kernels import configs
from moekit_kernels.moe_ffn import launches_few_rows
from moekit_kernels.targets import target_of
from tests.oracles import poisoned_empty
from tests.strategies import Routed, ffn_case
from tests.triton.moe_ffn_cases import check, operands_of

WEIGHTS = ("up_proj", "down_proj", "up_bias", "down_bias")

ROUTINGS = {
    "one token": ([[5, 0, 6]], 7),
    "one row of the last expert": ([[12]], 13),
    "one row of the first expert": ([[0]], 100),
    "all rows of one expert": ([[3], [3], [3], [3]], 9),
    "more rows of one expert than a step": ([[31]] * 20 + [[2]], 33),
    "as many rows as experts": ([[0, 5], [5, 2], [5, 4]], 6),
    "one row less than experts": ([[6, 1], [1, 2], [6, 5]], 7),
}


def _operands(routing, device, activation="swiglu", dtype=torch.float32, kept=None, widths=(20, 24, 17)):
    ids, num_experts = ROUTINGS[routing]
    ids = torch.tensor(ids)
    kept = torch.ones_like(ids, dtype=torch.bool) if kept is None else kept
    assert launches_few_rows.serves(ids.numel(), num_experts)
    return operands_of(ffn_case(Routed(ids, kept, num_experts, 0), *widths, activation, True), dtype, device)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_interleaved", "gelu"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_output_and_gradients_are_the_reference_with_many_idle_experts(routing, activation, device):
    check(_operands(routing, device, activation))


@pytest.mark.parametrize("routing", ["one token", "more rows of one expert than a step", "one row less than experts"])
def test_weights_stored_the_other_way(routing, device):
    tensors = _operands(routing, device, "swiglu_interleaved", torch.float16)
    leaves = dict(tensors.leaves)
    for name in ("up_proj", "down_proj"):
        leaves[name] = leaves[name].detach().mT.contiguous().mT.requires_grad_()
        assert leaves[name].stride(1) == 1
    check(tensors._replace(leaves=leaves))


@pytest.mark.parametrize("by_slot", [True, False])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_gradients_of_idle_experts_are_zero_and_nothing_uninitialised_shows(routing, by_slot, device):
    tensors = _operands(routing, device)
    if not by_slot:
        tensors = tensors._replace(plan=tensors.plan._replace(row_of_slot=None))
    with poisoned_empty():
        actual = tensors.run_with_gradients()
    ids, num_experts = ROUTINGS[routing]
    busy = torch.zeros(num_experts, dtype=torch.bool).index_fill_(0, torch.tensor(ids).flatten(), True)
    for name in WEIGHTS:
        has_gradient = actual[name].cpu().flatten(1).any(1)
        assert torch.equal(has_gradient, busy)
    assert all(value.isfinite().all() for value in actual.values())


@pytest.mark.parametrize("dropped", [[0], [-1], [0, -1]], ids=["first token", "last token", "both"])
def test_rows_of_no_expert_have_programs_without_work(dropped, device):
    kept = torch.ones(3, 2, dtype=torch.bool)
    kept[dropped] = False
    tensors = _operands("one row less than experts", device, kept=kept)
    check(tensors)
    with poisoned_empty():
        assert not tensors.run()[dropped].any()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_programs_counted_by_rows_give_the_bits_of_those_counted_by_experts(routing, device, monkeypatch):
    tensors = _operands(routing, device, dtype=torch.float16)
    by_rows = tensors.run_with_gradients()
    monkeypatch.setattr(launches_few_rows, "MOST_OFFSETS", 0)
    assert launches_few_rows.num_programs(1, 100) == 100
    by_experts = tensors.run_with_gradients()
    assert all(torch.equal(by_rows[name], value) for name, value in by_experts.items())


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_interleaved", "gelu"])
def test_narrow_strips_of_weights(activation, device):
    """Widths beyond a narrow strip and beyond a wide one, and a depth that is no multiple of the deeper step."""
    tensors = _operands("one row of the last expert", device, activation, widths=(72, 40, 88))
    weight = tensors.weights.down_proj
    table = {name: {"few_rows": {"32-bit": [[0, [16, 64, 16, 1, 4, 2, 1]]]}} for name in configs.committed()}
    with configs.override(table):
        strips = launches_few_rows.strips_of(target_of(device), 1, weight, weight.shape[1])
        assert strips.narrow
        assert (strips.config.block_n, strips.config.block_k) == (32, 32)
        check(tensors)
