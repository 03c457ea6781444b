"""The limit by mass: its reference, its errors and its launches."""

import pytest
import torch

from moekit_kernels.mass import launches, limit_to_mass, limit_to_mass_reference
from moekit_kernels.runtime import record
from moekit_kernels.targets import SM_90


def test_the_first_slots_that_reach_the_mass_are_kept():
    gates = torch.tensor([[0.5, 0.25, 0.125], [0.125, 0.125, 0.0625], [0.75, 0.125, 0.125]])
    limited = limit_to_mass(gates, 0.75)
    assert limited.kept.tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert torch.equal(limited.gates, torch.where(limited.kept, gates, 0))
    renormalized = limit_to_mass(gates, 0.75, renormalize=True).gates
    torch.testing.assert_close(renormalized.sum(-1), torch.ones(3))
    assert limit_to_mass(gates, 1.0).kept.all()
    assert limit_to_mass(torch.tensor([[1.0, 0.0]]), 1.0).kept.all()


def test_gates_that_are_nan_keep_nothing_and_give_no_gradient():
    gates = torch.tensor([[0.5, 0.25], [torch.nan, torch.nan]], requires_grad=True)
    limited = limit_to_mass(gates, 0.7, renormalize=True)
    assert limited.gates[1].isnan().all()
    assert not limited.kept[1].any()
    limited.gates[0].square().sum().backward()
    assert gates.grad.isfinite().all()


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradients_of_the_reference_are_of_every_order(renormalize):
    gates = torch.tensor([[0.5, 0.3, 0.1], [0.3, 0.25, 0.2]], dtype=torch.float64, requires_grad=True)

    def limited(g):
        return limit_to_mass_reference(g, 0.7, renormalize=renormalize).gates

    torch.autograd.gradcheck(limited, gates)
    torch.autograd.gradgradcheck(limited, gates)


@pytest.mark.parametrize(
    ("gates", "mass", "message"),
    [
        (
            torch.ones(3),
            0.5,
            r"gates must be of shape \(T, K\) in float32 or float64, got torch.float32 of shape",
        ),
        (torch.ones(3, 2).half(), 0.5, "got torch.float16 of shape"),
        (torch.ones(3, 2), 0.0, "mass must be above 0, got 0.0"),
        (torch.ones(3, 2), float("nan"), "mass must be above 0, got nan"),
    ],
)
def test_wrong_arguments_are_named(gates, mass, message):
    with pytest.raises(ValueError, match=message):
        limit_to_mass(gates, mass)


def test_it_is_one_launch_each_way():
    gates = torch.empty(1000, 8, device="meta")
    with record(SM_90) as started:
        limited, kept = launches.forward(gates, 0.5, True)
        launches.backward(limited, gates, kept, True)
    assert [one.kernel.fn.__name__ for one in started] == ["mass_fwd_kernel", "mass_bwd_kernel"]
    assert {one.grid for one in started} == {(8,)}
    with record(SM_90) as started:
        launches.forward(gates[:0], 0.5, True)
    assert not started
