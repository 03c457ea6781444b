"""Combine and its gradients by one kernel each, held to the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels.combine import combine, combine_reference, launches
from moekit_kernels.combine.token_rows import TokenRows
from moekit_kernels.plan import plan_dispatch, plan_expert_choice
from tests.oracles import poisoned_empty
from tests.strategies import plan_by_slot, plan_by_token
from tests.triton.tolerances import assert_near

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

quick = settings(max_examples=14, deadline=None, derandomize=True, database=None)


def _leaves(seed, dtype, num_rows, trailing, gates_shape, gates_dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, *trailing, generator=generator).to(DEVICE, dtype).requires_grad_()
    gates = torch.randn(gates_shape, generator=generator).to(DEVICE, gates_dtype).requires_grad_()
    return rows, gates


def _permutation(seed, size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _compare(plan, rows, gates, dtype, view=lambda g: g):
    """Outputs and all gradients, against the reference in float64 on the same operands."""
    exact_rows, exact_gates = (t.detach().double().requires_grad_() for t in (rows, gates))
    with poisoned_empty():
        actual = combine(rows, plan, view(gates), impl="triton")
        expected = combine_reference(exact_rows, plan, view(exact_gates))
        assert actual.dtype == rows.dtype
        assert_near(actual, expected, dtype, "out")
        grad = torch.randn(expected.shape, dtype=torch.float64).to(DEVICE).to(dtype)
        actual_grads = torch.autograd.grad(actual, (rows, gates), grad)
        expected_grads = torch.autograd.grad(expected, (exact_rows, exact_gates), grad.double())
    for name, a, b in zip(("d_rows", "d_gates"), actual_grads, expected_grads, strict=True):
        assert_near(a, b, dtype, name)


@quick
@given(
    st.sampled_from([0, 1, 3, 40, 150]),
    st.sampled_from([1, 2, 7, 17]),
    st.sampled_from([(), (1,), (5,), (16,), (33,), (2, 3)]),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_outputs_and_gradients(num_tokens, top_k, trailing, dtype, seed):
    rows, gates = _leaves(seed, dtype, num_tokens * top_k, trailing, (num_tokens, top_k))
    row_of_slot = _permutation(seed, num_tokens * top_k).view(num_tokens, top_k)
    _compare(plan_by_slot(row_of_slot), rows, gates, dtype)


@quick
@given(
    st.sampled_from([1, 3, 40]),
    st.sampled_from([0, 1, 30, 90]),
    st.sampled_from([(), (5,), (33,)]),
    st.sampled_from(DTYPES),
    st.sampled_from(["even", "one token"]),
    st.integers(0, 99),
)
def test_outputs_and_gradients_by_token(num_tokens, num_rows, trailing, dtype, skew, seed):
    rows, gates = _leaves(seed, dtype, num_rows, trailing, (num_rows,))
    slot = _permutation(seed, num_rows)
    token = torch.randint(num_tokens, (num_rows,), device=DEVICE)
    if skew == "one token":
        token = torch.full_like(token, num_tokens - 1)
    _compare(plan_by_token(token, slot, num_tokens), rows, gates, dtype)


@pytest.mark.parametrize("width", [600, 4500])
def test_rows_wider_than_a_tile(width):
    rows, gates = _leaves(0, torch.float32, 6, (width,), (3, 2))
    _compare(plan_by_slot(_permutation(0, 6).view(3, 2)), rows, gates, torch.float32)


def test_narrow_gates_and_strides():
    _, gates = _leaves(1, torch.bfloat16, 5 * 4, (8,), (2, 10), torch.bfloat16)
    plan = plan_by_slot(_permutation(1, 20).view(2, 10).mT.contiguous().view(10, 2))
    wide = torch.randn(20, 16, device=DEVICE, dtype=torch.bfloat16)[:, ::2].requires_grad_()
    _compare(plan, wide, gates, torch.bfloat16, view=lambda g: g.mT)


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradients_that_are_required(which):
    leaves = _leaves(3, torch.float32, 6, (5,), (3, 2))
    leaves[1 - which].requires_grad_(False)
    plan = plan_by_slot(_permutation(3, 6).view(3, 2))
    combine(leaves[0], plan, leaves[1], impl="triton").sum().backward()
    assert leaves[1 - which].grad is None
    exact = [t.detach().double().requires_grad_(i == which) for i, t in enumerate(leaves)]
    combine_reference(exact[0], plan, exact[1]).sum().backward()
    assert_near(leaves[which].grad, exact[which].grad, torch.float32)


@pytest.mark.parametrize("by_token", [False, True])
def test_parts_are_added_up_and_unassigned_rows_are_not_read(by_token):
    parts = torch.randn(3, 8, 5, device=DEVICE)
    offsets = torch.tensor([0, 2, 6], device=DEVICE)
    whole = torch.where(torch.arange(8, device=DEVICE)[:, None] < 6, parts.double().sum(0), 0)
    parts[:, 6:] = float("nan")  # as uninitialised memory may be
    row_of_slot, gates = _permutation(4, 8).view(4, 2), torch.randn(4, 2, device=DEVICE)
    plan = plan_by_slot(row_of_slot)
    token_rows = TokenRows(row_of_slot)
    if by_token:
        starts = torch.arange(0, 9, 2, device=DEVICE)
        token_rows = TokenRows(row_of_slot.sort(1).values.flatten(), starts, plan.slot_of_row)
    exact = combine_reference(whole, plan, gates.double())
    actual = launches.forward(parts, gates, token_rows, offsets, 4, torch.float16)
    assert actual.dtype == torch.float16
    assert_near(actual, exact, torch.float16)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(("num_tokens", "top_k", "num_parts", "split"), [(4, 2, 1, 0), (90, 3, 35, 2), (0, 2, 3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_tokens_and_gates_in_one_launch(by_token, num_tokens, top_k, num_parts, split, dtype):
    num_rows = num_tokens * top_k
    live = num_rows * 3 // 4
    rows = torch.randn(*((split,) if split else ()), num_rows, 37, device=DEVICE, dtype=dtype)
    partial = torch.randn(num_parts, num_rows, device=DEVICE)
    assigned = torch.arange(num_rows, device=DEVICE) < live
    whole = torch.where(assigned[:, None], rows.double().sum(0) if split else rows.double(), 0)
    rows[..., live:, :] = float("nan")  # as uninitialised memory may be
    partial[:, live:] = float("nan")
    row_of_slot = _permutation(4, num_rows).view(num_tokens, top_k)
    plan = plan_by_slot(row_of_slot)
    gates = torch.zeros(num_tokens, top_k, device=DEVICE, dtype=dtype)
    token_rows = TokenRows(row_of_slot)
    if by_token:
        starts = torch.arange(0, num_rows + 1, top_k, device=DEVICE)
        token_rows = TokenRows(row_of_slot.sort(1).values.flatten(), starts, plan.slot_of_row)
    arguments = (
        token_rows, torch.tensor([0, 1, live], device=DEVICE), num_tokens, torch.float32, partial, gates,
        plan.slot_of_row,
    )  # fmt: skip
    with poisoned_empty():
        grad_x, grad_gates = launches.input_gradients(rows, *arguments)
        again = launches.input_gradients(rows, *arguments)
    assert grad_x.dtype == torch.float32
    assert grad_gates.dtype == dtype
    assert_near(grad_x, combine_reference(whole, plan, torch.ones_like(gates).double()), torch.float32)
    of_rows = torch.where(assigned, partial.double().nan_to_num().sum(0), 0)
    assert_near(grad_gates, of_rows[row_of_slot], dtype)
    assert not grad_gates[~assigned[row_of_slot]].any()
    assert torch.equal(grad_x, again.x)
    assert torch.equal(grad_gates, again.gates)


def test_a_gate_that_is_nan_shows_even_on_an_unassigned_row():
    offsets = torch.tensor([0, 1], device=DEVICE)
    gates = torch.tensor([[1.0, float("nan")], [1.0, 2.0]], device=DEVICE)
    rows, token_rows = torch.ones(4, 3, device=DEVICE), TokenRows(torch.tensor([[0, 1], [2, 3]], device=DEVICE))
    out = launches.forward(rows, gates, token_rows, offsets, 2)
    assert out[0].isnan().all()
    assert not out[1].any()


def test_twice_the_same_and_a_retained_graph():
    rows, gates = _leaves(5, torch.float16, 300, (40,), (60, 5))
    plan = plan_by_slot(_permutation(5, 300).view(60, 5))
    once, again = (combine(rows, plan, gates, impl="triton") for _ in range(2))
    assert torch.equal(once, again)
    grad = torch.randn_like(once)
    first, second = (torch.autograd.grad(once, (rows, gates), grad, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("by_token", [False, True])
def test_opcheck(by_token):
    rows, gates = _leaves(6, torch.float32, 6, (5,), (3, 2))
    row = _permutation(6, 6)
    if by_token:
        arguments = (rows, gates, row, torch.tensor([0, 1, 1, 6], device=DEVICE), row.flip(0), 3)
    else:
        arguments = (rows, gates, row.view(3, 2), None, None, 3)
    torch.library.opcheck(torch.ops.moekit.combine, arguments)
    grad = torch.randn(3, 5, device=DEVICE)
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments[:5]]
    torch.library.opcheck(torch.ops.moekit.combine_backward, (grad, *detached, True, True))


def test_a_second_order_is_refused():
    rows, gates = _leaves(7, torch.float32, 6, (5,), (3, 2))
    out = combine(rows, plan_by_slot(_permutation(7, 6).view(3, 2)), gates, impl="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r'combine has first-order gradients only.*use impl="torch"'):
        grad.sum().backward()


def test_compiles_once_for_all_sizes():
    frames = []

    def backend(module, inputs):
        frames.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda r, p, g: combine(r, p, g, impl="triton"), fullgraph=True, dynamic=True, backend=backend
    )
    for num_tokens in (3, 7, 20):
        rows, gates = _leaves(8, torch.float32, num_tokens * 2, (5,), (num_tokens, 2))
        plan = plan_by_slot(_permutation(8, num_tokens * 2).view(num_tokens, 2))
        actual = compiled(rows, plan, gates)
        assert torch.equal(actual, combine(rows, plan, gates, impl="triton"))
        actual.sum().backward()
        assert rows.grad is not None
    assert len(frames) == 1


def test_rows_further_apart_than_two_to_the_31():
    apart = 2**31
    try:
        memory = torch.empty(apart + 16, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("no 4 GiB can be mapped")
    rows = memory.as_strided((2, 16), (apart, 1))
    values = torch.randn(2, 16, device=DEVICE).half()
    rows.copy_(values)
    token_rows, gates = TokenRows(torch.tensor([[1, 0]], device=DEVICE)), torch.randn(1, 2, device=DEVICE)
    grad = torch.randn(1, 16, device=DEVICE).half()
    # Another stride is another specialisation of the kernel: compiled code may round in another order.
    far, near = (
        (
            launches.forward(r, gates, token_rows, None, 1),
            *launches.backward(grad, r, gates, token_rows),
        )
        for r in (rows, values)
    )
    for a, b in zip(far, near, strict=True):
        assert_near(a, b, torch.float16)


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_plans_of_both_choices(choice):
    if choice == "token":
        plan, shape = plan_dispatch(torch.tensor([[0, 1], [1, 2], [2, 0]], device=DEVICE), 3), (3, 2)
    else:
        plan, shape = plan_expert_choice(torch.tensor([[2, 0], [1, 2]], device=DEVICE), 3), (2, 2)
    rows, gates = _leaves(9, torch.float32, plan.slot_of_row.shape[0], (2, 3), shape)
    _compare(plan, rows, gates, torch.float32)


@pytest.mark.parametrize(("wide", "name"), [(0, "rows"), (1, "gates")])
def test_a_dtype_without_kernel_is_named(wide, name):
    leaves = list(_leaves(10, torch.float32, 6, (5,), (3, 2)))
    leaves[wide] = leaves[wide].double()
    with pytest.raises(ValueError, match=f'impl="triton" takes {name} of bfloat16.*got torch.float64'):
        combine(leaves[0], plan_by_slot(_permutation(10, 6).view(3, 2)), leaves[1], impl="triton")
