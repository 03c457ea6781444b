"""Soft MoE: against the paper's algorithms written as loops, its symmetries, masks and statistics."""

import math

import pytest
import torch
from torch import Tensor, nn

from moekit import FFNExperts, ModuleExperts, SoftMoE, TopKRouter

DIM, HIDDEN, EXPERTS, SLOTS = 4, 5, 3, 2


def make_layer(normalize: bool = True, dtype: torch.dtype = torch.float64, **options) -> SoftMoE:
    torch.manual_seed(0)
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, dtype=dtype, **options)
    layer = SoftMoE(DIM, experts, slots_per_expert=SLOTS, normalize=normalize, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def make_input(*lead: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*lead, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apply_expert(layer: SoftMoE, expert: int, x: Tensor) -> Tensor:
    up = layer.experts.up_proj[expert] @ x
    gate, value = up[:HIDDEN], up[HIDDEN:]
    return layer.experts.down_proj[expert] @ (gate * torch.sigmoid(gate) * value)


def logits_by_loop(layer: SoftMoE, x: Tensor) -> list[list[float]]:
    """``(tokens, E P)``; with ``normalize`` as in algorithm 2, l2_normalize on X and on the columns of Phi."""
    phi = layer.phi.flatten(1)
    rows = []
    for token in x:
        row = []
        for column in phi.T:
            product = (token * column).sum()
            if layer.normalize:
                product = product * layer.scale / (token.square().sum().sqrt() * column.square().sum().sqrt())
            row.append(product.item())
        rows.append(row)
    return rows


def by_loop(layer: SoftMoE, x: Tensor) -> tuple[Tensor, list[list[float]]]:
    """Algorithm 1 for one sequence; returns the output and the combine weights."""
    logits = logits_by_loop(layer, x)
    tokens, slots = len(logits), EXPERTS * SLOTS
    made = []
    for s in range(slots):
        column = [math.exp(logits[t][s]) for t in range(tokens)]
        slot = sum(column[t] / sum(column) * x[t] for t in range(tokens))
        made.append(apply_expert(layer, s // SLOTS, slot))
    out, weights = [], []
    for t in range(tokens):
        row = [math.exp(v) for v in logits[t]]
        weights.append([v / sum(row) for v in row])
        out.append(sum(weights[t][s] * made[s] for s in range(slots)))
    return torch.stack(out), weights


@pytest.mark.parametrize("normalize", [False, True])
def test_output_and_statistics_are_those_of_the_paper(normalize: bool) -> None:
    layer, x = make_layer(normalize), make_input(2, 5)
    output, stats = layer(x)
    probs, logsumexp_sq, entropy = [0.0] * EXPERTS, 0.0, 0.0
    for sequence, got in zip(x, output, strict=True):
        expected, weights = by_loop(layer, sequence)
        torch.testing.assert_close(got, expected)
        for row, logits in zip(weights, logits_by_loop(layer, sequence), strict=True):
            logsumexp_sq += math.log(sum(math.exp(v) for v in logits)) ** 2
            for e in range(EXPERTS):
                p = sum(row[e * SLOTS : (e + 1) * SLOTS])
                probs[e] += p
                entropy -= p * math.log(p)
    assert stats.prob_sum.tolist() == pytest.approx(probs)
    assert stats.gate_sum.tolist() == pytest.approx(probs)
    assert stats.logsumexp_sq_sum.item() == pytest.approx(logsumexp_sq)
    assert stats.entropy_sum.item() == pytest.approx(entropy)
    assert stats.tokens_per_expert.tolist() == stats.load.tolist() == [2 * SLOTS] * EXPERTS
    assert stats.dropped_per_expert.tolist() == [0] * EXPERTS
    assert (stats.num_tokens.item(), stats.nonfinite_tokens.item()) == (10, 0)


def test_modules_serve_as_experts_and_may_change_the_width() -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(DIM, 7, dtype=torch.float64) for _ in range(EXPERTS)]
    layer = SoftMoE(DIM, ModuleExperts(linears), normalize=False, dtype=torch.float64)
    x = make_input(5)
    logits = x @ layer.phi.flatten(1)
    slots = logits.softmax(0).T @ x
    made = torch.stack([linears[e](slots[e]) for e in range(EXPERTS)])
    torch.testing.assert_close(layer(x).output, logits.softmax(1) @ made)


@pytest.mark.parametrize("lead", [(5,), (2, 3, 5), (1, 5), (0, 5), (2, 0)])
def test_leading_dimensions_are_sequences_of_their_own(lead: tuple[int, ...]) -> None:
    layer, x = make_layer(), make_input(*lead)
    output = layer(x).output
    assert output.shape == x.shape
    flat = x.reshape(-1, *x.shape[-2:]) if x.numel() else x.reshape(0, lead[-1], DIM)
    for sequence, got in zip(flat, output.reshape(flat.shape), strict=True):
        torch.testing.assert_close(got, layer(sequence).output)


def test_the_order_of_tokens_does_not_matter() -> None:
    layer, x = make_layer(), make_input(2, 6)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    torch.testing.assert_close(layer(x[:, order]).output, layer(x).output[:, order])


def test_normalised_logits_do_not_depend_on_the_length_of_tokens_or_slots() -> None:
    layer, x = make_layer(), make_input(5)
    expected = logits_by_loop(layer, x)
    with torch.no_grad():
        layer.phi.mul_(3)
    torch.testing.assert_close(torch.tensor(logits_by_loop(layer, 10 * x)), torch.tensor(expected))
    stats, shrunk = layer(10 * x).stats, layer(x).stats
    torch.testing.assert_close(stats.prob_sum, shrunk.prob_sum)


@pytest.mark.parametrize("padding", [0.0, 100.0, math.nan])
def test_masked_tokens_have_no_part(padding: float) -> None:
    layer, x = make_layer(), make_input(2, 6)
    mask = torch.tensor([[True, True, False, True, False, True], [False] * 6])
    x = torch.where(mask.unsqueeze(-1), x, padding)
    output, stats = layer(x, mask=mask)
    alone = layer(x[0, mask[0]].unsqueeze(0))
    torch.testing.assert_close(output[0, mask[0]], alone.output[0])
    assert output[~mask].eq(0).all()
    assert (stats.num_tokens.item(), stats.nonfinite_tokens.item()) == (4, 0)
    for name in ("prob_sum", "logsumexp_sq_sum", "entropy_sum"):
        torch.testing.assert_close(getattr(stats, name), getattr(alone.stats, name))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_tokens_show_in_their_own_output_only(value: float) -> None:
    layer, x = make_layer(), make_input(6)
    x[2, 1] = value
    output, stats = layer(x)
    others = torch.arange(6) != 2
    assert output[2].isnan().all()
    torch.testing.assert_close(output[others], layer(x[others]).output)
    assert (stats.num_tokens.item(), stats.nonfinite_tokens.item()) == (5, 1)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_agree_with_finite_differences(normalize: bool) -> None:
    layer = make_layer(normalize, bias=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        output, stats = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return output, stats.prob_sum, stats.entropy_sum, stats.logsumexp_sq_sum

    assert torch.autograd.gradcheck(call, (make_input(1, 3).requires_grad_(), *layer.parameters()))


def test_compiles_to_one_graph() -> None:
    layer = make_layer(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in ((2, 5), (3, 7)):
        x = make_input(*lead, dtype=torch.float32)
        mask = torch.arange(lead[1]).expand(lead) > 0
        compiled(x, mask=mask).output.square().sum().backward()
        grads = [parameter.grad.clone() for parameter in layer.parameters()]
        layer.zero_grad()
        output = layer(x, mask=mask).output
        output.square().sum().backward()
        torch.testing.assert_close(compiled(x, mask=mask).output, output)
        torch.testing.assert_close(grads, [parameter.grad for parameter in layer.parameters()])
        layer.zero_grad()


def test_exports_with_dynamic_batch_and_length() -> None:
    layer = make_layer(dtype=torch.float32).eval()
    batch, length = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "length"))
    program = torch.export.export(
        layer, (make_input(2, 5, dtype=torch.float32),), dynamic_shapes={"x": {0: batch, 1: length}}
    )
    x = make_input(3, 9, dtype=torch.float32)
    torch.testing.assert_close(program.module()(x).output, layer(x).output)


def test_autocast_keeps_the_mixing_weights_in_float32() -> None:
    layer, x = make_layer(dtype=torch.float32), make_input(2, 5, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, stats = layer(x)
    torch.testing.assert_close(stats.prob_sum, expected.stats.prob_sum)
    torch.testing.assert_close(output.float(), expected.output, rtol=0.05, atol=0.05)


def test_meta_device_reset_and_repr() -> None:
    layer = SoftMoE(DIM, FFNExperts(DIM, HIDDEN, EXPERTS, device="meta"), slots_per_expert=SLOTS, device="meta")
    assert layer.phi.is_meta
    layer.to_empty(device="cpu")
    layer.experts.reset_parameters()
    layer.reset_parameters()
    assert layer.scale.item() == 1
    assert layer.phi.abs().max() <= 2 / DIM**0.5
    assert layer(make_input(5, dtype=torch.float32)).output.isfinite().all()
    assert "dim=4, slots_per_expert=2, normalize=True" in repr(layer)


def test_bad_arguments_are_refused() -> None:
    experts = FFNExperts(DIM, HIDDEN, EXPERTS)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        SoftMoE(0, experts)
    with pytest.raises(ValueError, match="slots_per_expert must be at least 1, got 0"):
        SoftMoE(DIM, experts, slots_per_expert=0)
    convolutions = ModuleExperts([nn.Conv2d(DIM, DIM, 1)], token_ndim=3)
    with pytest.raises(ValueError, match=r"experts must take feature vectors \(token_ndim 1\), got token_ndim 3"):
        SoftMoE(DIM, convolutions)


def test_inputs_that_do_not_fit_are_refused() -> None:
    layer = make_layer(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"x must be of a floating dtype, got torch\.int64"):
        layer(torch.zeros(2, DIM, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., S, D\), got shape \(4,\)"):
        layer(torch.zeros(DIM))
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(2, 3\)"):
        layer(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must be on the device of the layer's parameters, cpu, got meta"):
        layer(torch.zeros(2, DIM, device="meta"))
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(2)):
        with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2,\)"):
            layer(torch.zeros(2, DIM), mask=mask)
    with pytest.raises(ValueError, match=r"x must have the dtype of the experts' weights, torch\.float32, got"):
        layer(torch.zeros(2, DIM, dtype=torch.bfloat16))


def test_a_state_with_a_scalar_scale_loads():
    moe = SoftMoE(4, FFNExperts(4, 6, 3))
    state = moe.state_dict() | {"scale": torch.tensor(3.0)}
    assert moe.load_state_dict(state).missing_keys == []
    assert moe.scale.tolist() == [3.0]


def test_statistics_can_be_left_out():
    moe, x = SoftMoE(4, FFNExperts(4, 6, 3)), torch.randn(2, 5, 4)
    assert moe(x, stats=False).stats is None
    assert torch.equal(moe(x, stats=False).output, moe(x).output)


def test_experts_set_later_must_fit_the_slots():
    moe, x = SoftMoE(4, FFNExperts(4, 6, 3)), torch.randn(2, 5, 4)
    with pytest.raises(
        ValueError, match="experts must be 3, as the slots were built for, got 4: build another SoftMoE"
    ):
        moe.experts = FFNExperts(4, 6, 4)
    with pytest.raises(ValueError, match=r"experts must take feature vectors \(token_ndim 1\), got token_ndim 3"):
        moe.experts = ModuleExperts([nn.Conv2d(4, 4, 1)] * 3, token_ndim=3)
    with pytest.raises(ValueError, match="experts must be Experts, got a router, TopKRouter: experts come second"):
        moe.experts = TopKRouter(4, 3, 2)
    moe.experts = FFNExperts(4, 2, 3)
    assert moe(x).output.shape == x.shape


def test_what_is_no_bank_of_experts_is_refused():
    with pytest.raises(ValueError, match="experts must be Experts, got a router, TopKRouter: experts come second"):
        SoftMoE(4, TopKRouter(4, 3, 2))
    with pytest.raises(ValueError, match=r"experts must be an nn\.Module, got a function"):
        SoftMoE(4, lambda x: x)
    with pytest.raises(ValueError, match=r"experts must have the attributes num_experts, .* got Linear without"):
        SoftMoE(4, nn.Linear(4, 4))
