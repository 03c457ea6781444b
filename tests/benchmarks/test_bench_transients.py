"""What the expert FFN holds at once, with rows gathered into memory and without, counted from tensors without data."""

import math

import pytest
import torch

from benchmarks.memory import Transients
from benchmarks.shapes import PRESETS
from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.moe_ffn import ExpertWeights, gathers
from moekit_kernels.plan import RowOrder
from moekit_kernels.runtime import record
from moekit_kernels.targets import SM_90

if not triton_is_installed() or interpreting():
    pytest.skip("launches of Triton kernels are recorded, not interpreted", allow_module_level=True)

from moekit_kernels.moe_ffn import launches

NOWHERE, EVERYWHERE = gathers.Gathers(False, False, False), gathers.Gathers(True, True, True)


def _empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


class _Forgetting(Transients):
    """Drops recorded launches, which would keep their operands alive, before each allocation is counted."""

    def __init__(self, launches):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launches.clear()
        return super().__torch_dispatch__(func, types, args, kwargs)


def _peaks(name, way, recompute="activation"):
    """The most bytes that forward and backward of a SwiGLU FFN hold beside their arguments."""
    tokens, dim, hidden, experts, top_k = PRESETS[name]
    rows = tokens * top_k
    index = [_empty(*size, dtype=torch.int64) for size in ((rows,), (rows,), (experts + 1,), (tokens, top_k))]
    x, gates = _empty(tokens, dim), _empty(tokens, top_k, dtype=torch.float32)
    weights = ExpertWeights(_empty(experts, 2 * hidden, dim), _empty(experts, dim, hidden))
    tensors = (x, gates, RowOrder(*index), weights)
    pre, kept = _empty(rows if recompute == "activation" else 0, 2 * hidden), _empty(0, hidden)
    with record(SM_90) as launched, gathers.override(**way._asdict()):
        with _Forgetting(launched) as forward:
            forward.ignore([x, gates, *index, *weights[:2]])
            launches.forward(*tensors, "swiglu", recompute != "all", False)
        with _Forgetting(launched) as backward:
            backward.ignore([x, gates, *index, *weights[:2], pre, kept])
            launches.backward(x, *tensors, pre, kept, "swiglu", True, True, True)
    return forward.peak, backward.peak


def test_transients_are_counted_while_they_live():
    with Transients() as transients:
        outer = torch.zeros(100)
        transients.ignore([outer])
    with Transients() as transients:
        transients.ignore([outer])
        view = outer[:50]
        assert transients.peak == 0
        one = torch.zeros(1000)
        del one
        two = torch.zeros(500) + view.sum()
        assert transients.peak >= 4000
        assert transients.peak < 6000
        del two
    assert math.isclose(transients.peak, 4000, abs_tol=100)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "mixtral"])
@pytest.mark.parametrize("recompute", ["activation", "all"])
def test_gathered_rows_are_freed_as_soon_as_they_were_read(name, recompute):
    """They raise the peak of forward not at all, and of backward by less than one copy: two never live at once."""
    forward, backward = _peaks(name, EVERYWHERE, recompute)
    plain_forward, plain_backward = _peaks(name, NOWHERE, recompute)
    tokens, dim, _, _, top_k = PRESETS[name]
    assert forward == plain_forward
    assert backward < plain_backward + 2 * tokens * top_k * dim
