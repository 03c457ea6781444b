"""Grouped LoRA of experts: what it computes, what it trains, and what it never makes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import allocated_peak
from moekit import ExpertChoiceRouter, FFNExperts, HardRouter, SparseMoE, TopKRouter
from moekit.lora import (
    add_lora_,
    load_lora_state_dict_,
    lora_disabled,
    lora_parameters,
    lora_state_dict,
    merge_lora_,
    remove_lora_,
    unmerge_lora_,
)
from moekit.plan import plan_dispatch
from moekit_kernels.moe_ffn import loop
from tests.oracles import relative_error

DIM, HIDDEN, EXPERTS, TOP_K = 6, 5, 4, 2


class Block(nn.Module):
    """A model with a sparse layer and something else to freeze."""

    def __init__(self, moe: SparseMoE) -> None:
        super().__init__()
        self.moe = moe
        self.head = nn.Linear(moe.experts.out_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.moe(x).output)


def make(dtype: torch.dtype = torch.float32, impl: str = "auto", **options) -> Block:
    torch.manual_seed(0)
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, **{"bias": True, "init_scale": 1.0, "impl": impl} | options)
    return Block(SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K, impl=impl), experts, impl=impl)).to(dtype)


def trained(model: nn.Module, std: float = 0.5) -> nn.Module:
    """Moves the adapters away from zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def materialised(model: Block) -> Block:
    """Returns a model whose weights are the sums, differentiable in weights and adapters, by its plain experts."""
    experts = model.moe.experts
    lora, plain = experts.lora, make(experts.up_proj.dtype, "reference", activation=experts.activation)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".lora." not in k})
    bank = plain.moe.experts
    bank.down_bias, bank.up_bias = experts.down_bias, experts.up_bias
    for name, own, a, b in (
        ("up_proj", experts.up_proj, lora.up_a, lora.up_b),
        ("down_proj", experts.down_proj, lora.down_a, lora.down_b),
    ):
        delattr(bank, name)
        setattr(bank, name, own if a is None else own + lora.scaling * b @ a)
    return plain


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "clamped_swiglu_interleaved"])
@pytest.mark.parametrize("tokens", [0, 1, 7, 300])
def test_untrained_adapters_leave_the_output_bit_for_bit(impl, dtype, activation, tokens):
    model, x = make(dtype, impl, activation=activation), torch.randn(tokens, DIM, dtype=dtype)
    expected = model(x)
    add_lora_(model, rank=3)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("hidden", "bound"), [(32, 0.0), (5, 1e-6)])
def test_untrained_adapters_leave_the_output_of_many_rows(monkeypatch, hidden, bound):
    # The fused loop takes the activation of one expert's rows at a time; of odd widths, other numbers are then left
    # over from the vectors of the processor, whose exponential rounds otherwise than a single one.
    monkeypatch.setattr(loop, "_FEW_NUMBERS", 0)
    moe, x = SparseMoE.ffn(16, hidden, EXPERTS, TOP_K, bias=True), torch.randn(300, 16)
    expected = moe(x).output
    add_lora_(moe)
    assert relative_error(moe(x).output, expected) <= bound


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("products", [("up",), ("down",), ("up", "down")])
@pytest.mark.parametrize("activation", ["swiglu_interleaved", "relu", F.softplus])
def test_output_and_gradients_are_those_of_the_materialised_sum(impl, products, activation):
    model, x = make(torch.float64, impl, activation=activation), torch.randn(20, DIM, dtype=torch.float64)
    add_lora_(model, rank=3, alpha=5.0, products=products, freeze=False)
    trained(model)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = model(x1), materialised(model)(x2)
    torch.testing.assert_close(output, expected)
    leaves = [*lora_parameters(model), model.moe.experts.up_proj, model.moe.experts.down_bias]
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), [x1, *leaves])
    expected_gradients = torch.autograd.grad((expected * weight).sum(), [x2, *leaves])
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_gradients_of_adapters_pass_gradcheck(impl):
    model, x = (
        make(torch.float64, impl, activation="gelu"),
        torch.randn(5, DIM, dtype=torch.float64, requires_grad=True),
    )
    add_lora_(model, rank=2)
    trained(model)
    routing = model.moe.route(x.detach())
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def compute(x: Tensor, *adapters: Tensor) -> Tensor:
        return torch.func.functional_call(
            model.moe, dict(zip(names, adapters, strict=True)), (x,), {"routing": routing}
        )[0]

    names = [name.removeprefix("moe.") for name in names]
    assert torch.autograd.gradcheck(compute, (x, *lora_parameters(model)))


def test_experts_without_a_token_get_zero_gradients():
    model = make()
    add_lora_(model, rank=3)
    trained(model)
    plan = plan_dispatch(torch.tensor([[1], [3], [1]]), EXPERTS)
    output = model.moe.experts(torch.randn(3, DIM), plan, torch.ones(3, 1))
    output.sum().backward()
    for parameter in lora_parameters(model):
        assert parameter.grad[[0, 2]].eq(0).all()
        assert parameter.grad[[1, 3]].any()


@pytest.mark.parametrize(
    "router",
    [HardRouter(DIM, EXPERTS, gradient="straight_through"), ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=1.0)],
)
def test_other_routers_and_capacity(router):
    torch.manual_seed(0)
    limit = None if isinstance(router, ExpertChoiceRouter) else 0.7
    moe = SparseMoE(router, FFNExperts(DIM, HIDDEN, EXPERTS), capacity_factor=limit)
    x = torch.randn(30, DIM)
    mask = torch.rand(30) > 0.2
    add_lora_(moe, rank=2)
    trained(moe)
    output = moe(x, mask=mask).output
    merge_lora_(moe)
    assert relative_error(moe(x, mask=mask).output, output) < 1e-5


def test_only_adapters_are_trained():
    model, x, target = make(), torch.randn(64, DIM), torch.randn(64, 3)
    add_lora_(model, rank=4)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(lora_parameters(model), lr=0.05)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".lora." in name), name
        assert (parameter.grad is not None) == parameter.requires_grad == (".lora." in name), name


def test_without_freezing_all_stays_as_it_was():
    model = make()
    model.head.requires_grad_(False)
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    add_lora_(model, freeze=False)
    states = {name: p.requires_grad for name, p in model.named_parameters() if ".lora." not in name}
    assert states == expected


def test_a_second_call_adapts_other_layers_and_leaves_the_first():
    model = nn.ModuleList([make(), make()])
    first = add_lora_(model, "0.moe")
    second = add_lora_(model, "1.moe.experts", rank=2)
    assert (list(first), list(second)) == (["0.moe.experts"], ["1.moe.experts"])
    assert len(lora_parameters(model)) == 8
    assert all(p.requires_grad for p in lora_parameters(model))


def total_allocated(model: nn.Module, x: Tensor) -> int:
    """Returns the bytes that are held at most during forward and backward."""
    return allocated_peak(lambda: model(x).sum().backward())


def largest_allocation(model: nn.Module, x: Tensor) -> int:
    """Returns the largest memory that forward and backward allocate at once, in bytes."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x).sum().backward()
    return max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("tokens", [2, 40])
def test_frozen_experts_cost_no_gradient_memory(impl, tokens):
    experts, dim, hidden = 32, 32, 48
    size = experts * dim * hidden * 4  # one gradient of stacked weights; all rows of 40 tokens take less
    model = Block(SparseMoE.ffn(dim, hidden, experts, 1, activation="gelu", impl=impl))
    x = torch.randn(tokens, dim, requires_grad=True)
    assert largest_allocation(model, x) >= size
    model.moe.experts.requires_grad_(False)
    assert largest_allocation(model, x) < size / 8
    assert model.moe.experts.up_proj.grad is not None  # of the first call only
    for name in ("up_proj", "down_proj") if impl == "torch" else ():  # of one matrix: as much as that, not as both
        model.moe.experts.zero_grad()
        model.moe.experts.get_parameter(name).requires_grad_(True)
        assert total_allocated(model, x) < 1.5 * size
        assert model.moe.experts.get_parameter(name).grad is not None
        model.moe.experts.requires_grad_(False)
    add_lora_(model, rank=2)
    assert largest_allocation(model, x) < size / 8


def test_merged_equals_unmerged_and_the_way_back():
    model, x = make(), torch.randn(40, DIM)
    plain = copy.deepcopy(model)
    add_lora_(model, rank=3)
    trained(model)
    output = model(x)
    assert relative_error(plain(x), output) > 1e-2
    merge_lora_(model)
    merge_lora_(model)
    torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-6)
    unmerge_lora_(model)
    unmerge_lora_(model)
    torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.moe.experts.up_proj, plain.moe.experts.up_proj)
    with lora_disabled(model):
        torch.testing.assert_close(model(x), plain(x))
    assert torch.equal(model(x), output) or relative_error(model(x), output) < 1e-6
    merge_lora_(model)
    remove_lora_(model)
    assert type(model.moe.experts) is FFNExperts
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(x), output, rtol=1e-5, atol=1e-6)


def test_merged_state_dict_is_that_of_a_plain_model():
    model, x = trained_model(), torch.randn(40, DIM)
    output = model(x)
    merge_lora_(model)
    plain = make()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), output, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="lora is merged, so that its experts cannot be loaded: call unmerge_lora_"):
        model.load_state_dict(plain.state_dict())


def trained_model(**options) -> Block:
    model = make()
    add_lora_(model, **{"rank": 3} | options)
    trained(model)
    return model


def test_state_dicts_whole_and_of_adapters_alone():
    model, x = trained_model(), torch.randn(40, DIM)
    names = [f"moe.experts.lora.{each}" for each in ("up_a", "up_b", "down_a", "down_b", "stored_scaling")]
    assert list(lora_state_dict(model)) == names
    assert [name for name in model.state_dict() if ".lora." in name] == names
    assert set(make().state_dict()) == set(model.state_dict()) - set(names)
    other = make()
    add_lora_(other, rank=3)
    load_lora_state_dict_(other, lora_state_dict(model))
    assert torch.equal(other(x), model(x))
    third = make()
    add_lora_(third, rank=3)
    third.load_state_dict(model.state_dict())
    assert torch.equal(third(x), model(x))


def test_adapters_are_loaded_with_their_scaling_alone():
    model, other = trained_model(alpha=8.0), trained_model(alpha=16.0)
    with pytest.raises(
        ValueError, match=r"must be of adapters of scaling 5.33333 for experts 'moe.experts', got 2.66667"
    ):
        load_lora_state_dict_(other, lora_state_dict(model))
    with pytest.raises(
        RuntimeError, match=r"lora has the scaling 5.33333, but is loaded from adapters of scaling 2.666"
    ):
        other.load_state_dict(model.state_dict())
    stable = trained_model(alpha=8.0, rank_stabilized=True).bfloat16()
    assert stable.moe.experts.lora.scaling == pytest.approx(8 / 3**0.5)
    assert stable.moe.experts.lora.stored_scaling.dtype == torch.float32
    stable.load_state_dict(stable.state_dict())


def test_dropout_is_of_training_only():
    model, x = trained_model(dropout=0.5), torch.randn(40, DIM)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train().moe.experts.lora.dropout = 0.0
    assert torch.equal(model(x), model(x))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        model.moe.experts.lora.dropout = 1.0


def test_adapters_of_their_own_dtype_and_autocast():
    model, x = make(torch.bfloat16), torch.randn(40, DIM, dtype=torch.bfloat16)
    add_lora_(model, rank=3, dtype=torch.float32)
    trained(model)
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in lora_parameters(model))
    wide = trained_model()
    rows = torch.randn(40, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        low = wide(rows)
    assert low.dtype == torch.bfloat16
    assert 0 < relative_error(low.float(), wide(rows)) < 0.05


def test_compiled_whole_copied_and_built_on_the_meta_device():
    model, x = trained_model(), torch.randn(40, DIM)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with torch.device("meta"):
        empty = make()
        add_lora_(empty, rank=3)
    empty.to_empty(device="cpu")
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(x), model(x))


def test_random_numbers_are_those_of_the_generator():
    first, second = make(), make()
    add_lora_(first, generator=torch.Generator().manual_seed(5))
    add_lora_(second, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.moe.experts.lora.up_a, second.moe.experts.lora.up_a)
    assert first.moe.experts.lora.up_a.abs().max() <= DIM**-0.5


class Subclass(FFNExperts):
    """Experts that may compute otherwise."""


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (make, {"rank": 0}, "rank must be at least 1, got 0"),
        (make, {"products": ("gate",)}, "products must be one of 'up', 'down', got 'gate'"),
        (make, {"products": ()}, "products must name at least one of 'up', 'down', got none"),
        (make, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        (
            make,
            {"where": "head"},
            "must hold FFNExperts or stacked experts of transformers, got 'head', a Linear, with",
        ),
        (lambda: nn.Linear(2, 2), {}, "stacked experts of transformers, got a Linear without any"),
        (lambda: make(recompute="all"), {}, "recompute of experts 'moe.experts' must be \"activation\" .* got 'all'"),
        (lambda: Subclass(4, 4, 2), {}, "experts '' must be FFNExperts, got a Subclass, which may compute otherwise"),
        (trained_model, {}, "experts 'moe.experts' must have no adapters yet: call remove_lora_ first"),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_nothing_changes(build, options, message):
    model = build()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        add_lora_(model, **options)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_refusals_of_the_other_functions():
    for function in (lora_parameters, lora_state_dict, merge_lora_, unmerge_lora_, remove_lora_):
        with pytest.raises(
            ValueError, match="must hold experts with adapters, got a Block without any: add_lora_ adds"
        ):
            function(make())
    model = trained_model()
    with pytest.raises(ValueError, match='recompute must be "activation" for experts with adapters'):
        model.moe.experts.recompute = "none"
    state = lora_state_dict(model)
    with pytest.raises(ValueError, match=r"1 names too few .*up_a.* and 0 too many"):
        load_lora_state_dict_(model, {k: v for k, v in state.items() if not k.endswith("up_a")})
    with pytest.raises(
        ValueError, match=r"up_a'\] must have shape \(4, 3, 6\), got \(4, 2, 6\): add adapters of the same"
    ):
        load_lora_state_dict_(model, {k: v[:, :2] if k.endswith("up_a") else v for k, v in state.items()})
    merge_lora_(model)
    for call in (lambda: lora_state_dict(model), lora_disabled(model).__enter__):
        with pytest.raises(ValueError, match=r"adapters must not be merged to be .*, got 'moe.experts' merged"):
            call()
    model.moe.experts.__class__ = type("Other", (type(model.moe.experts),), {})
    with pytest.raises(ValueError, match="must have the class that add_lora_ gave them, got a Other"):
        remove_lora_(model)


def test_quantised_or_sharded_weights_are_not_merged():
    model = trained_model()
    model.moe.experts.up_proj = nn.Parameter(model.moe.experts.up_proj.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"must have plain floating weights to be merged, got a Parameter of torch.int8"
    ):
        merge_lora_(model)
