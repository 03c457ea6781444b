"""Values are read in eager calls, never of a call of which a graph is made."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from moekit_kernels.plan import plan_dispatch
from moekit_kernels.transforms import is_traced

WRONG = torch.tensor([[0, 4]]).expand(200, 2)


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_trace_by_make_fx_is_noticed(mode: str, pre_dispatch: bool) -> None:
    seen: list[bool] = []

    def probe(x: Tensor) -> Tensor:
        seen.append(is_traced())
        return x + 1

    make_fx(probe, tracing_mode=mode, pre_dispatch=pre_dispatch)(torch.ones(2))
    assert seen == [True]
    assert not is_traced()


def test_traces_by_jit_export_and_the_compiler_are_noticed() -> None:
    def probe(x: Tensor) -> Tensor:
        return x + 1 if is_traced() else x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(probe, torch.ones(2))
    assert traced(torch.ones(1)).tolist() == [2.0]
    assert torch.compile(probe, backend="eager", fullgraph=True)(torch.ones(1)).tolist() == [2.0]

    class Probe(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return probe(x)

    assert torch.export.export(Probe(), (torch.ones(1),)).module()(torch.ones(1)).tolist() == [2.0]


@pytest.mark.parametrize("context", [FlopCounterMode(display=False), torch.device("cpu")], ids=["flops", "device"])
def test_modes_that_make_no_graph_leave_the_range_of_ids_checked(context: FlopCounterMode | torch.device) -> None:
    with context:
        assert not is_traced()
        with pytest.raises(ValueError, match=r"expert_ids must be in \[0, 4\), the experts, got 4"):
            plan_dispatch(WRONG, 4)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_traced_plan_is_one_of_any_ids(impl: str) -> None:
    ids = torch.arange(300).reshape(150, 2) % 4
    graph = make_fx(lambda ids: plan_dispatch(ids, 4, impl=impl).slot_of_row)(ids)
    other = ids.flip(0).contiguous()
    assert torch.equal(graph(other), plan_dispatch(other, 4).slot_of_row)
    assert not torch.equal(graph(other), graph(ids))
