"""The limit by mass in one kernel each way, held to the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit import DynamicTopKRouter, FFNExperts, SparseMoE, TopKRouter
from moekit_kernels import runtime
from moekit_kernels.mass import limit_to_mass, limit_to_mass_reference
from tests.oracles import poisoned_empty

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def ranked(num_tokens, top_k, seed, spread=2.0):
    """The probabilities of the best experts of some tokens, one of which has logits that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    probs = (spread * torch.randn(num_tokens, top_k + 2, generator=generator)).softmax(-1)
    gates = probs.sort(-1, descending=True).values[:, :top_k]
    if num_tokens > 3:
        gates[2] = torch.nan
    return gates.to(DEVICE)


@quick
@given(
    st.sampled_from([0, 1, 3, 40, 700]),
    st.sampled_from([1, 2, 3, 8, 17, 64]),
    st.sampled_from([1e-6, 0.3, 0.7, 0.95, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_outputs_and_gradients(num_tokens, top_k, mass, renormalize, transposed, seed):
    gates = ranked(num_tokens, top_k, seed)
    if transposed:
        gates = gates.T.contiguous().T
    # A sum within rounding of the mass may keep a slot more in one precision than in the other.
    before = gates.nan_to_num().double().cumsum(-1)
    if ((before - mass).abs() < 1e-6).any() and mass < 1:
        return
    own, exact = gates.clone().requires_grad_(), gates.double().requires_grad_()
    with poisoned_empty():
        actual = limit_to_mass(own, mass, renormalize=renormalize, impl="triton")
    expected = limit_to_mass_reference(exact, mass, renormalize=renormalize)
    assert torch.equal(actual.kept, expected.kept)
    torch.testing.assert_close(actual.gates, expected.gates.float(), equal_nan=True)
    grad = torch.randn(num_tokens, top_k, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    (actual_grad,) = torch.autograd.grad(actual.gates, own, grad)
    (expected_grad,) = torch.autograd.grad(expected.gates, exact, grad.double())
    torch.testing.assert_close(actual_grad, expected_grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck():
    gates = ranked(5, 3, 0)[3:].contiguous().requires_grad_()
    for renormalize in (False, True):
        torch.library.opcheck(torch.ops.moekit.limit_to_mass.default, (gates, 0.5, renormalize))
        limited, kept = torch.ops.moekit.limit_to_mass(gates.detach(), 0.5, renormalize)
        grad = torch.randn_like(limited)
        backward = torch.ops.moekit.limit_to_mass_backward.default
        torch.library.opcheck(backward, (grad, gates.detach(), kept, renormalize))


def test_it_compiles_whole():
    gates = ranked(5, 3, 0)
    compiled = torch.compile(lambda g: limit_to_mass(g, 0.6, impl="triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(gates).kept, limit_to_mass(gates, 0.6).kept)


def test_vmap_is_one_call_after_another():
    gates = torch.stack([ranked(5, 3, seed) for seed in (0, 1)])
    batched = torch.vmap(lambda g: limit_to_mass(g, 0.6, impl="triton").gates)(gates)
    torch.testing.assert_close(batched[1], limit_to_mass(gates[1], 0.6, impl="triton").gates, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # of forward mode's own decompositions
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in its forward mode
def test_gradients_are_of_first_order_and_no_tangent_is_lost():
    gates = ranked(3, 3, 0).requires_grad_()
    (grad,) = torch.autograd.grad(
        limit_to_mass(gates, 0.6, renormalize=True, impl="triton").gates.square().sum(), gates, create_graph=True
    )
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda g: limit_to_mass(g, 0.6, impl="triton").gates, (gates.detach(),), (gates.detach(),))


@pytest.mark.parametrize("renormalize", [False, True])
def test_a_layer_by_kernels_is_that_of_plain_pytorch(renormalize):
    torch.manual_seed(0)
    router = DynamicTopKRouter(16, 8, 4, mass=0.5, renormalize=renormalize, init_scale=4.0, device=DEVICE)
    moe = SparseMoE(router, FFNExperts(16, 16, 8, device=DEVICE))
    x = torch.randn(40, 16, device=DEVICE)
    mask = torch.arange(40, device=DEVICE) % 5 > 0
    results = []
    for impl in ("reference", "triton"):
        router.impl = moe.experts.impl = moe.impl = "auto"
        router.impl = moe.experts.impl = moe.impl = impl
        moe.zero_grad()
        tokens = x.clone().requires_grad_()
        output, stats = moe(tokens, mask=mask)
        (output.square().sum() + stats.gate_sum.square().sum() + stats.entropy_sum).backward()
        results.append((output, tokens.grad, *(p.grad.clone() for p in moe.parameters()), *stats))
    kept = router(x).kept
    assert 40 < kept.sum() < 160
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("gate_hidden_dim", [None, 16])
def test_a_layer_takes_one_launch_more_each_way_than_with_fused_top_k_routing(gate_hidden_dim, monkeypatch):
    started, start = [], runtime._prepared_start()

    def recorded(kernel, *rest):
        started.append(kernel.fn.__name__)
        return start(kernel, *rest)

    monkeypatch.setattr(runtime, "_prepared_start", lambda: recorded)
    options = {"impl": "triton", "gate_hidden_dim": gate_hidden_dim, "device": DEVICE}
    names = []
    for router in (TopKRouter(16, 8, 4, renormalize=False, **options), DynamicTopKRouter(16, 8, 4, **options)):
        moe = SparseMoE(router, FFNExperts(16, 16, 8, impl="triton", device=DEVICE), impl="triton")
        started.clear()
        output, _ = moe(torch.randn(20, 16, device=DEVICE), stats=False)
        forward = list(started)
        output.sum().backward()
        names.append((forward, started[len(forward) :]))
    (plain_forward, plain_backward), (forward, backward) = names
    assert forward == [plain_forward[0], "mass_fwd_kernel", *plain_forward[1:]]
    assert sorted(backward) == sorted([*plain_backward, "mass_bwd_kernel"])
