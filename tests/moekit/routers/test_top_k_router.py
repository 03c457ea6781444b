"""Top-k routing: which experts, with what gates, against formulas written out token by token."""

import math

import pytest
import torch
from torch import Tensor, nn

from moekit import TopKRouter

DIM, EXPERTS, TOKENS = 6, 8, 20
SCORINGS = ("softmax", "topk_softmax", "sigmoid")
WAYS = [("softmax", False), ("softmax", True), ("topk_softmax", True), ("sigmoid", False), ("sigmoid", True)]


def make_router(top_k: int = 2, num_experts: int = EXPERTS, dtype: torch.dtype = torch.float64, **options):
    torch.manual_seed(0)
    router = TopKRouter(DIM, num_experts, top_k, dtype=dtype, **options)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def make_input(tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


def largest(values: list[float], k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda e: (-values[e], e))[:k]


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [v / sum(exps) for v in exps]


def sigmoid(values: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-v)) for v in values]


@pytest.mark.parametrize("scaling_factor", [1.0, 2.5])
@pytest.mark.parametrize(("scoring", "renormalize"), WAYS)
def test_gates_ids_and_probs_follow_the_table(scoring: str, renormalize: bool, scaling_factor: float) -> None:
    router = make_router(3, scoring=scoring, renormalize=renormalize, scaling_factor=scaling_factor)
    x = make_input()
    routing = router(x)
    logits = x @ router.gate.layers[0].weight.T
    torch.testing.assert_close(routing.logits, logits)
    for t, row in enumerate(logits.tolist()):
        ids = largest(row, 3)
        probs = softmax(row)
        scores = sigmoid(row) if scoring == "sigmoid" else probs
        gates = [scores[e] for e in ids]
        if scoring == "topk_softmax":
            gates = softmax([row[e] for e in ids])
        elif renormalize:
            gates = [g / sum(gates) for g in gates]
        if scoring == "sigmoid":
            probs = [s / sum(scores) for s in scores]
        assert routing.expert_ids[t].tolist() == ids
        assert routing.gates[t].tolist() == pytest.approx([scaling_factor * g for g in gates], abs=1e-12)
        assert routing.probs[t].tolist() == pytest.approx(probs, abs=1e-12)
    assert routing.valid.all()
    assert routing.load_probs is None
    assert routing.token_ids is None


def test_gates_are_renormalised_by_default_only_where_there_are_several() -> None:
    several, one = make_router(2), make_router(1)
    torch.testing.assert_close(several(make_input()).gates.sum(-1), torch.ones(TOKENS, dtype=torch.float64))
    routing = one(make_input())
    torch.testing.assert_close(routing.gates, routing.probs.max(-1, keepdim=True).values)


def by_groups(scores: list[float], bias: list[float], groups: int, kept: int, k: int) -> list[int]:
    """The choice of DeepSeek-V3, section 2.1.2, as a loop."""
    size = len(scores) // groups
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    worth = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = largest(worth, kept)
    candidates = [e for e in range(len(scores)) if e // size in best]
    return sorted(candidates, key=lambda e: (-choice[e], e))[:k]


@pytest.mark.parametrize(("num_groups", "topk_groups"), [(4, 2), (2, 1), (12, 5), (3, 3)])
def test_group_limited_selection_is_that_of_deepseek_v3(num_groups: int, topk_groups: int) -> None:
    router = make_router(
        4,
        12,
        scoring="sigmoid",
        scaling_factor=2.5,
        num_groups=num_groups,
        topk_groups=topk_groups,
        selection_bias=True,
    )
    router.selection_bias.copy_(torch.randn(12))
    routing = router(make_input())
    differs = 0
    for t, row in enumerate(routing.logits.tolist()):
        scores = sigmoid(row)
        ids = by_groups(scores, router.selection_bias.tolist(), num_groups, topk_groups, 4)
        total = sum(scores[e] for e in ids)
        assert routing.expert_ids[t].tolist() == ids
        assert routing.gates[t].tolist() == pytest.approx([2.5 * scores[e] / total for e in ids], abs=1e-12)
        differs += ids != largest(scores, 4)
    assert differs > 0


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_same_ids_and_weights_as_transformers_deepseek_v3(norm_topk_prob: bool) -> None:
    configuration = pytest.importorskip("transformers.models.deepseek_v3.configuration_deepseek_v3")
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = configuration.DeepseekV3Config(
        hidden_size=DIM,
        num_local_experts=12,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
        routed_scaling_factor=2.5,
        norm_topk_prob=norm_topk_prob,
    )
    theirs = modeling.DeepseekV3TopkRouter(config)
    router = make_router(
        3,
        12,
        dtype=torch.float32,
        scoring="sigmoid",
        renormalize=norm_topk_prob,
        scaling_factor=2.5,
        num_groups=4,
        topk_groups=2,
        selection_bias=True,
    )
    with torch.no_grad():
        router.selection_bias.copy_(torch.randn(12))
        theirs.weight.copy_(router.gate.layers[0].weight)
        theirs.e_score_correction_bias.copy_(router.selection_bias)
    x = make_input(200, torch.float32)
    routing = router(x)
    _, weights, ids = theirs(x)
    order = ids.sort(-1).indices
    mine = routing.expert_ids.sort(-1).indices
    assert routing.expert_ids.gather(-1, mine).equal(ids.gather(-1, order))
    torch.testing.assert_close(routing.gates.gather(-1, mine), weights.gather(-1, order))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("top_k", [2, 17])
def test_equal_logits_go_to_the_lowest_ids(scoring: str, top_k: int) -> None:
    router = make_router(top_k, 20, scoring=scoring, init_scale=0.0)
    router.reset_parameters()
    routing = router(make_input())
    assert routing.expert_ids.tolist() == [list(range(top_k))] * TOKENS
    torch.testing.assert_close(routing.probs, torch.full((TOKENS, 20), 1 / 20, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [3, 17])
def test_tokens_with_non_finite_logits_are_marked_and_change_no_other(value: float, top_k: int) -> None:
    router = make_router(top_k, 20, noisy=True).train()
    x = make_input()
    torch.manual_seed(2)
    clean = router(x)
    x[3, 1] = value
    torch.manual_seed(2)
    routing = router(x)
    others = torch.arange(TOKENS) != 3
    assert routing.valid.tolist() == others.tolist()
    assert routing.gates[3].isnan().all()
    assert routing.probs[3].eq(0).all()
    assert routing.expert_ids.min() >= 0
    assert routing.expert_ids.max() < 20
    for mine, theirs in ((routing.gates, clean.gates), (routing.expert_ids, clean.expert_ids)):
        assert mine[others].equal(theirs[others])


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_extreme_logits_keep_probs_gates_and_gradients_finite(scoring: str, renormalize: bool) -> None:
    logits = torch.tensor([[-300.0, -301, -302, -303], [300.0, -300, -300, -300]], requires_grad=True)
    router = TopKRouter(4, 4, 2, scoring=scoring, renormalize=renormalize, gate=nn.Identity(), selection_bias=True)
    router.selection_bias.copy_(torch.tensor([0.0, 0, 2, 2]))
    routing = router(logits)
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(2))
    if renormalize:
        torch.testing.assert_close(routing.gates.sum(-1), torch.ones(2))
    (routing.gates.sum() * 10 + routing.probs.square().sum()).backward()
    assert routing.gates.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_gradients_of_gates_and_probs_agree_with_finite_differences(scoring: str) -> None:
    router = make_router(2, scoring=scoring, scaling_factor=1.5)
    x = make_input(4).requires_grad_()

    def call(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        routing = torch.func.functional_call(router, {"gate.layers.0.weight": weight}, (x,))
        return routing.gates, routing.probs

    weight = router.gate.layers[0].weight
    assert torch.autograd.gradcheck(call, (x, weight))
    router(x).gates[:, 0].sum().backward()
    assert weight.grad.abs().sum() > 0


def test_a_mask_changes_nothing() -> None:
    router, x = make_router(), make_input()
    mask = torch.arange(TOKENS) % 2 == 0
    for mine, theirs in zip(router(x, mask), router(x), strict=True):
        assert mine is theirs is None or mine.equal(theirs)


def test_no_tokens() -> None:
    routing = make_router(noisy=True).train()(make_input(0))
    assert routing.gates.tolist() == routing.expert_ids.tolist() == routing.load_probs.tolist() == []


class PerLetter(nn.Module):
    """A gate on ids: logits from a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x]


def test_any_module_can_be_the_gate() -> None:
    table = torch.tensor([[1.0, 0, 2], [0.0, 5, 1]], dtype=torch.bfloat16)
    router = TopKRouter(1, 3, 2, gate=PerLetter(table))
    routing = router(torch.tensor([1, 0]))
    assert routing.expert_ids.tolist() == [[1, 2], [2, 0]]
    assert routing.logits.dtype == torch.float32
    torch.testing.assert_close(routing.probs, table.float()[[1, 0]].softmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"top_k": 0}, "top_k must be between 1 and num_experts=8, got 0"),
        ({"top_k": 9}, "top_k must be between 1 and num_experts=8, got 9"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"gate_hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        (
            {"scoring": "tanh"},
            "scoring must be one of 'softmax', 'topk_softmax', 'sigmoid', 'sqrt_softplus', got 'tanh'",
        ),
        ({"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1.0"),
        ({"jitter": -0.1}, r"jitter must be in \[0, 1\), got -0.1"),
        ({"top_k": 1, "renormalize": True}, "top_k=1 with renormalised gates makes every gate 1"),
        ({"top_k": 1, "scoring": "topk_softmax"}, "top_k=1 with renormalised gates makes every gate 1"),
        ({"group_score": "max"}, "group_score='max' needs num_groups and topk_groups, got neither"),
        (
            {"num_groups": 2, "topk_groups": 1, "group_score": "sum"},
            "group_score must be one of 'top2_sum', 'max', got",
        ),
        ({"num_groups": 2}, "num_groups and topk_groups go together, got 2 and None"),
        ({"topk_groups": 2}, "num_groups and topk_groups go together, got None and 2"),
        ({"num_groups": 3, "topk_groups": 1}, "num_groups must divide num_experts=8, got 3"),
        ({"num_groups": 0, "topk_groups": 1}, "num_groups must divide num_experts=8, got 0"),
        ({"num_groups": 2, "topk_groups": 3}, "topk_groups must be between 1 and num_groups=2, got 3"),
        ({"num_groups": 2, "topk_groups": 0}, "topk_groups must be between 1 and num_groups=2, got 0"),
        ({"num_groups": 8, "topk_groups": 1}, "topk_groups=1 groups of 1 experts hold fewer than top_k=2"),
        ({"gate": nn.Identity(), "gate_bias": True}, "gate_hidden_dim and gate_bias describe the built-in gate"),
        ({"gate": nn.Identity(), "gate_hidden_dim": 4}, "gate_hidden_dim and gate_bias describe the built-in gate"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKRouter(**{"dim": DIM, "num_experts": 8, "top_k": 2, **options})


def test_bad_inputs_are_refused() -> None:
    router = make_router()
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 6, got shape \(2, 5\)"):
        router(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x unless given\) must be of a floating dtype, got torch\.int64"):
        router(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"router logits must have shape \(T, E\), got shape \(2, 3, 8\)"):
        router(torch.zeros(2, 3, 6))
    narrow = TopKRouter(DIM, 8, 2, gate=nn.Linear(DIM, 7))
    with pytest.raises(ValueError, match=r"gate must give num_experts=8 logits, got shape \(2, 7\)"):
        narrow(torch.zeros(2, DIM))


@pytest.mark.parametrize("options", [{"selection_bias": True}, {"num_groups": 2, "topk_groups": 1}])
def test_noise_does_not_go_with_other_ways_of_selecting(options: dict) -> None:
    with pytest.raises(ValueError, match="noisy=True does not go with selection_bias or num_groups"):
        TopKRouter(DIM, 4, 2, noisy=True, **options)


def test_gates_of_topk_softmax_cannot_be_left_unnormalised() -> None:
    with pytest.raises(ValueError, match="always renormalises: leave renormalize out"):
        TopKRouter(DIM, 4, 2, scoring="topk_softmax", renormalize=False)


def test_the_selection_bias_stays_in_float32() -> None:
    router = TopKRouter(DIM, 4, 2, selection_bias=True)
    router.selection_bias.fill_(0.5)
    router.update_bias_(torch.tensor([9, 9, 0, 0]))
    router = router.to(torch.bfloat16)
    assert router.gate.layers[0].weight.dtype == torch.bfloat16
    assert router.selection_bias.tolist() == pytest.approx([0.499, 0.499, 0.501, 0.501], abs=1e-6)
    router.update_bias_(torch.tensor([9, 9, 0, 0]))
    assert router.selection_bias.tolist() == pytest.approx([0.498, 0.498, 0.502, 0.502], abs=1e-6)
