"""What routing starts on a GPU, recorded from tensors without data: one launch each way, and small buffers."""

import pytest
import torch
from torch import Tensor

from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.runtime import Launch, record
from moekit_kernels.targets import GFX942, SM_80, SM_90, SM_100, Target

if not triton_is_installed() or interpreting():
    pytest.skip("launches of Triton kernels are recorded, not interpreted", allow_module_level=True)

from moekit_kernels.routing import launches, launches_linear
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients

TARGETS = pytest.mark.parametrize("target", [SM_80, SM_90, SM_100, GFX942], ids=lambda target: target.name)
BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routed(
    target: Target, tokens: int, dim: int, experts: int, top_k: int, logits: bool = True, dtype: torch.dtype = BF16
) -> tuple[Launch, Launch]:
    """The launches of forward, and of the products backward."""
    forward, *backward = all_routed(target, tokens, dim, experts, top_k, logits, dtype)
    return forward, backward[-1]


def all_routed(
    target: Target, tokens: int, dim: int, experts: int, top_k: int, logits: bool = True, dtype: torch.dtype = BF16
) -> list[Launch]:
    """All launches: one forward, then those of backward."""
    x, weight, options = empty(tokens, dim), empty(experts, dim, dtype=dtype), RouteOptions(top_k)
    with record(target) as started:
        out = launches_linear.forward(x, weight, None, options, None, logits, logits)
        grads = RouteGradients(*(getattr(out, name) for name in RouteGradients._fields))
        kept = (empty(tokens, experts, dtype=FP32), out.valid, out.ids, None, options)
        launches_linear.backward(grads, x, weight, None, *kept, (True, True, False))
    return list(started)


@TARGETS
@pytest.mark.parametrize("tokens", [0, 1, 32, 4096])
def test_the_router_is_one_launch_each_way(target: Target, tokens: int) -> None:
    names = [launch.kernel.fn.__name__ for launch in all_routed(target, tokens, 2048, 64, 8)]
    assert names == ["route_linear_fwd_kernel", "route_linear_bwd_kernel"]


@TARGETS
@pytest.mark.parametrize("tokens", [4097, 32768, 131072])
def test_the_gradients_of_many_tokens_logits_are_a_launch_of_their_own(target: Target, tokens: int) -> None:
    forward, gradients, products = all_routed(target, tokens, 2048, 64, 8)
    names = [launch.kernel.fn.__name__ for launch in (forward, gradients, products)]
    assert names == ["route_linear_fwd_kernel", "route_linear_grad_kernel", "route_linear_bwd_kernel"]
    assert target.processors <= gradients.grid[0] <= 16 * target.processors
    assert gradients.arguments["grad_parts"] is products.arguments["grad_parts"]
    assert products.arguments["APART"]


@TARGETS
def test_routing_of_logits_is_one_launch_each_way(target: Target) -> None:
    logits, options = empty(4096, 600), RouteOptions(4)
    with record(target) as started:
        out = launches.forward(logits, options, None)
        launches.backward(RouteGradients(out.gates, *[None] * 6), logits, out.ids, None, options)
    assert [launch.kernel.fn.__name__ for launch in started] == ["route_fwd_kernel", "route_bwd_kernel"]


@TARGETS
@pytest.mark.parametrize(("tokens", "dim"), [(1, 4096), (32, 1024), (300, 2048), (4096, 1024)])
def test_few_tokens_share_their_rows_among_programs_that_cover_the_depth(target: Target, tokens: int, dim: int) -> None:
    forward, _ = routed(target, tokens, dim, 16, 2)
    splits, depth, rows = (forward.arguments[name] for name in ("SPLITS", "BLOCK_K", "ROWS"))
    steps = -(-dim // depth)
    assert forward.grid == (-(-tokens // rows) * splits,)
    share = -(-steps // splits)
    assert splits * share >= steps > (splits - 1) * share, "each program has a step at least"
    assert forward.grid[0] <= target.processors
    assert tokens > 300 or splits > 1


@TARGETS
def test_buffers_of_partial_results_are_small_beside_the_tokens(target: Target) -> None:
    forward, backward = routed(target, 32768, 2048, 64, 8)
    tokens = forward.arguments["x"].nbytes
    assert forward.arguments["partials"].nbytes < tokens / 100
    assert forward.arguments["parts"] is forward.arguments["finite_logits"]
    assert backward.arguments["partials"].nbytes <= 16 * 4 * 64 * 2048
    assert backward.grid[0] <= 2 * target.processors
    assert backward.arguments["grad_parts"].shape[0] == 2


@TARGETS
def test_logits_and_probabilities_are_written_when_asked_for(target: Target) -> None:
    forward, _ = routed(target, 131072, 2048, 64, 8, logits=False)
    assert forward.arguments["finite_logits"] is None
    assert forward.arguments["probs"] is None
    assert forward.arguments["SCRATCH"]
    assert forward.arguments["parts"].shape[0] == forward.grid[0] <= 2 * target.processors


@pytest.mark.parametrize(("dtype", "parts"), [(BF16, (1, 1)), (FP32, (1, 3)), (torch.float16, (1, 2))])
def test_operands_are_split_into_as_few_parts_as_hold_them(dtype: torch.dtype, parts: tuple[int, int]) -> None:
    forward, _ = routed(SM_90, 4096, 256, 8, 2, dtype=dtype)
    assert (forward.arguments["X_PARTS"], forward.arguments["W_PARTS"]) == parts
