"""Routing written out in PyTorch, held to loops over tokens; what ``route`` refuses and which form it takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moekit_kernels.routing import route, route_reference, routing_sums
from tests.oracles import assert_close
from tests.strategies import few

WAYS = [
    *(("softmax", renormalize) for renormalize in (True, False)),
    ("topk_softmax", True),
    *((scoring, renormalize) for scoring in ("sigmoid", "sqrt_softplus") for renormalize in (True, False)),
]


def softmax(row: Tensor) -> Tensor:
    exps = torch.exp(row - row.max())
    return exps / exps.sum()


def largest(values: Tensor, k: int) -> list[int]:
    """Indices of the largest, ties to the lowest."""
    flat = values.tolist()
    return sorted(range(len(flat)), key=lambda e: (-flat[e], e))[:k]


ELEMENTWISE = {"sigmoid": torch.sigmoid, "sqrt_softplus": lambda row: (1 + row.exp()).log().sqrt()}


def choice(
    row: Tensor, top_k: int, scoring: str, bias: Tensor | None, groups: tuple[int, int, str] | None
) -> list[int]:
    """The experts of one token, by the scores themselves."""
    scores = ({"softmax": softmax, "topk_softmax": lambda row: row} | ELEMENTWISE)[scoring](row.detach())
    if bias is not None:
        scores = scores + bias
    if groups is None:
        return largest(scores, top_k)
    size = len(row) // groups[0]
    terms = 1 if groups[2] == "max" else 2
    worth = torch.stack([part.sort().values[-terms:].sum() for part in scores.split(size)])
    best = largest(worth, groups[1])
    closed = torch.tensor([e // size not in best for e in range(len(row))])
    return largest(scores.masked_fill(closed, -math.inf), top_k)


def naive_route(logits: Tensor, top_k: int, scoring, renormalize, factor, bias, groups, mask) -> dict[str, Tensor]:
    """Returns all fields, computed token by token."""
    num_experts = logits.shape[1]
    rows: dict[str, list] = {"gates": [], "ids": [], "probs": [], "valid": []}
    zero = logits.sum() * 0 if logits.isfinite().all() else logits.new_zeros(())
    sums = {name: [zero] * num_experts for name in ("tokens_per_expert", "prob_sum", "gate_sum")}
    scalars = {"logsumexp_sq_sum": zero, "entropy_sum": zero}
    tokens = {"num_tokens": 0, "nonfinite_tokens": 0}
    for t, row in enumerate(logits):
        valid = bool(row.isfinite().all())
        row = row if valid else torch.zeros_like(row)
        scores = ELEMENTWISE.get(scoring, softmax)(row)
        ids = choice(row, top_k, scoring, bias, groups)
        gates = softmax(row[ids]) if scoring == "topk_softmax" else scores[ids]
        gates = factor * (gates / gates.sum() if renormalize else gates)
        probs = scores / scores.sum()
        rows["gates"].append(gates if valid else torch.full_like(gates, math.nan))
        rows["ids"].append(torch.tensor(ids))
        rows["probs"].append(probs if valid else torch.zeros_like(probs))
        rows["valid"].append(torch.tensor(valid))
        if mask is not None and not mask[t]:
            continue
        tokens["num_tokens" if valid else "nonfinite_tokens"] += 1
        if not valid:
            continue
        for e in range(num_experts):
            sums["prob_sum"][e] = sums["prob_sum"][e] + probs[e]
            scalars["entropy_sum"] = scalars["entropy_sum"] - probs[e] * probs[e].log()
        for k, e in enumerate(ids):
            sums["gate_sum"][e] = sums["gate_sum"][e] + gates[k]
            sums["tokens_per_expert"][e] = sums["tokens_per_expert"][e] + 1
        scalars["logsumexp_sq_sum"] = scalars["logsumexp_sq_sum"] + row.exp().sum().log().square()
    fields = {name: torch.stack(values) for name, values in (rows | sums).items()} | scalars
    load = fields["tokens_per_expert"].detach()
    counts = {name: torch.tensor(count) for name, count in tokens.items()}
    return fields | counts | {"tokens_per_expert": load.long(), "load": load}


@few
@given(
    way=st.sampled_from(WAYS),
    tokens=st.sampled_from([1, 2, 9]),
    shape=st.sampled_from([(1, 1, None), (5, 5, None), (7, 2, None), (12, 3, (4, 2)), (12, 20, None), (6, 2, (6, 3))]),
    group_score=st.sampled_from(["top2_sum", "max"]),
    biased=st.booleans(),
    masked=st.booleans(),
    broken=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_reference_is_the_loop_over_tokens_in_outputs_and_gradients(
    way, tokens, shape, group_score, biased, masked, broken, seed
) -> None:
    num_experts, top_k, groups = shape
    top_k = min(top_k, num_experts)
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tokens, num_experts, generator=generator, dtype=torch.float64)
    if broken:
        logits[0, -1] = math.nan
    bias = torch.randn(num_experts, generator=generator, dtype=torch.float64) if biased else None
    mask = torch.rand(tokens, generator=generator) > 0.3 if masked else None
    leaf, expected_leaf = (logits.clone().requires_grad_() for _ in range(2))
    num_groups, topk_groups = groups or (None, None)
    groups = None if groups is None else (*groups, group_score)
    actual = route_reference(
        leaf,
        top_k,
        scoring=way[0],
        renormalize=way[1],
        scaling_factor=2.5,
        selection_bias=bias,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score="top2_sum" if groups is None else group_score,
        mask=mask,
    )
    expected = naive_route(expected_leaf, top_k, *way, 2.5, bias, groups, mask)
    total = [torch.zeros((), dtype=torch.float64)] * 2
    values = actual._asdict() | actual.counts._asdict() | actual.sums._asdict()
    finite_rows = torch.where(leaf.isfinite().all(1, keepdim=True), leaf, 0)
    assert torch.equal(values.pop("logits"), finite_rows)
    del values["sums"], values["counts"]
    for name, field in values.items():
        if not field.is_floating_point():
            assert torch.equal(field, expected[name]), name
            continue
        torch.testing.assert_close(field, expected[name], rtol=1e-12, atol=1e-12, equal_nan=True)
        weight = torch.randn(field.shape, generator=generator, dtype=torch.float64)
        finite = field.isfinite()
        total = [t + (f * weight)[finite].sum() for t, f in zip(total, (field, expected[name]), strict=True)]
    for value in total:
        if value.requires_grad:
            value.backward()
    expected_gradient = torch.zeros_like(logits) if expected_leaf.grad is None else expected_leaf.grad
    assert_close(leaf.grad, expected_gradient.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sqrt_softplus_and_its_slope_are_exact_over_the_whole_range(dtype: torch.dtype) -> None:
    values = torch.cat([torch.linspace(-60, 60, 481), torch.tensor([-1e4, -300, -20, 300, 1e4])]).to(dtype)
    logits = torch.stack([values, torch.zeros_like(values)], 1).requires_grad_()
    routed = route_reference(logits, 2, scoring="sqrt_softplus", renormalize=False)
    of_value = routed.gates.gather(1, (routed.ids == 0).int().argmax(1, keepdim=True))[:, 0]
    (gradient,) = torch.autograd.grad(of_value.sum(), logits)
    for x, score, slope in zip(values.tolist(), of_value.tolist(), gradient[:, 0].tolist(), strict=True):
        softplus = max(x, 0) + math.log1p(math.exp(-abs(x)))
        expected = math.sqrt(softplus)
        assert score == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps * max(1, abs(x)))
        if expected > 0:
            sigmoid = math.exp(min(x, 0)) / (1 + math.exp(-abs(x)))
            assert slope == pytest.approx(sigmoid / (2 * expected), rel=8 * torch.finfo(dtype).eps * max(1, abs(x)))


def test_no_tokens_give_zero_sums() -> None:
    routed = route_reference(torch.zeros(0, 5), 2)
    assert routed.ids.shape == routed.gates.shape == (0, 2)
    assert all(field.eq(0).all() for field in (*routed.counts, *routed.sums))


def test_sums_can_be_left_out() -> None:
    logits, mask = torch.randn(6, 5), torch.arange(6) > 2
    whole = route(logits, 2, mask=mask)
    for with_sums in (False, None):  # None: only where they cost nothing
        routed = route(logits, 2, mask=mask, with_sums=with_sums)
        assert routed.sums is None
        assert routed.counts is None
        assert all(torch.equal(a, b) for a, b in zip(routed[:5], whole[:5], strict=True))


@pytest.mark.parametrize("by_token", [True, False])
def test_sums_without_logits_and_of_expert_choice(by_token: bool) -> None:
    probs, counted = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]), torch.tensor([True, True, False])
    gates, ids = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0], [1], [1]])
    sums = routing_sums(gates, ids, None, probs, counted, by_token=by_token)
    assert sums.prob_sum.tolist() == [1.5, 0.5]
    assert sums.gate_sum.tolist() == [1.0, 2.0 if by_token else 6.0]
    assert sums.logsumexp_sq_sum.item() == 0
    assert sums.entropy_sum.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_scores_that_rounding_makes_equal_are_ranked_by_their_logits(scoring: str) -> None:
    logits = torch.tensor([[200.0, 300.0, -200.0, -150.0, 250.0]])
    assert route_reference(logits, 5, scoring=scoring).ids.tolist() == [[1, 4, 0, 3, 2]]


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(6, 5, dtype=torch.bfloat16)
    half, single = (route_reference(x, 2) for x in (logits, logits.float()))
    for a, b in zip((*half[:5], *half.counts, *half.sums), (*single[:5], *single.counts, *single.sums), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("scoring", "renormalize"), [("softmax", True), *WAYS[-2:]])
def test_gradients_of_every_order(scoring: str, renormalize: bool) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def floats(logits: Tensor) -> tuple[Tensor, ...]:
        routed = route(logits, 2, scoring=scoring, renormalize=renormalize, impl="reference")
        return routed.gates, routed.probs, *routed.sums

    assert torch.autograd.gradgradcheck(floats, (logits,))


def test_an_explicit_choice_is_not_changed_but_refused() -> None:
    with pytest.raises(ValueError, match=r"impl must be one of 'auto', .*, got 'cuda'"):
        route(torch.zeros(2, 4), 1, impl="cuda")
    with pytest.raises(ValueError, match=r"takes logits of bfloat16, float16 and float32, got torch\.float64"):
        route(torch.zeros(2, 4, dtype=torch.float64), 1, impl="triton")
    with pytest.raises(ValueError, match="takes num_experts up to 4096, got 5000"):
        route(torch.zeros(2, 5000), 1, impl="triton")
    with pytest.raises(ValueError, match='takes top_k up to 64, got 65: use impl="auto", "torch" or "reference"'):
        route(torch.zeros(2, 80), 65, impl="triton")


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits": torch.zeros(4)}, r"logits must be a floating tensor of shape \(T, E\), got torch.float32 of shape"),
        ({"top_k": 0}, "top_k must be between 1 and the 6 experts of the logits, got 0"),
        ({"top_k": 7}, "top_k must be between 1 and the 6 experts of the logits, got 7"),
        (
            {"scoring": "tanh"},
            "scoring must be one of 'softmax', 'topk_softmax', 'sigmoid', 'sqrt_softplus', got 'tanh'",
        ),
        ({"group_score": "mean"}, "group_score must be one of 'top2_sum', 'max', got 'mean'"),
        ({"group_score": "max"}, "group_score='max' needs num_groups and topk_groups, got neither"),
        ({"num_groups": 3}, "num_groups and topk_groups go together, got 3 and None"),
        ({"num_groups": 4, "topk_groups": 1}, "num_groups must divide num_experts=6, got 4"),
        ({"num_groups": 3, "topk_groups": 4}, "topk_groups must be between 1 and num_groups=3, got 4"),
        ({"num_groups": 6, "topk_groups": 1}, "topk_groups=1 groups of 1 experts hold fewer than top_k=2"),
        ({"selection_bias": torch.zeros(5)}, r"selection_bias must have shape \(6,\), got \(5,\)"),
        ({"selection_bias": torch.zeros(6, dtype=torch.int64)}, "selection_bias must be of a floating dtype, got"),
        ({"selection_bias": torch.zeros(6, device="meta")}, "selection_bias must be on the device of the logits, cpu"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have shape \(4,\), got \(3,\)"),
        ({"mask": torch.ones(4)}, "mask must be a bool tensor .* got torch.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, message: str, impl: str) -> None:
    with pytest.raises(ValueError, match=message):
        route(**{"logits": torch.zeros(4, 6), "top_k": 2, "impl": impl, **options})


def test_the_kernel_needs_a_gpu_or_the_interpreter() -> None:
    with pytest.raises(ValueError, match=r'impl="triton" needs tensors on a GPU, got device .cpu.'):
        route(torch.zeros(2, 4), 1, impl="triton")
