"""Whether a layer computes what it should: output and gradients against formulas in float32 or wider."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import Layer
from benchmarks.workload import Workload

TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-4,  # with float32 accumulation in any order; TF32, which is off, would be ten times worse
    torch.float16: 4e-3,  # 5e-4 a rounding of a stored value, some in a row
    torch.bfloat16: 3e-2,  # 4e-3 a rounding of a stored value, some in a row
}
"""``||actual - expected|| / ||expected||`` above which a peer disagrees."""

_ELEMENTS_AT_ONCE = 1 << 26


class Expected(NamedTuple):
    """The right output and gradients: float32 on a GPU, float64 on CPU."""

    output: Tensor
    x: Tensor
    gates: Tensor
    up: Tensor
    down: Tensor


@torch.no_grad()
def expected_of(workload: Workload) -> Expected:
    """Returns output and gradients by the formulas, one expert at a time; no autograd.

    With ``a = W_up x``, ``h = silu(a_gate) a_value``, ``y = W_down h`` and ``g = dOut[token]``:
    ``dgate = <g, y>``, ``dW_down = gate g h^T``, ``dh = gate W_down^T g``, ``dW_up = da x^T``, ``dx = W_up^T da``.
    """
    wide = torch.float32 if workload.x.is_cuda else torch.float64
    x, grad, gates = (tensor.to(wide) for tensor in (workload.x, workload.grad, workload.gates))
    output, dx, dgates = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(gates)
    dup = torch.zeros(workload.up.shape, dtype=wide, device=x.device)
    ddown = torch.zeros(workload.down.shape, dtype=wide, device=x.device)
    for expert in range(workload.shape.num_experts):
        token, place = torch.where(workload.ids == expert)
        if token.numel() == 0:
            continue
        up, down = workload.up[expert].to(wide), workload.down[expert].to(wide)
        rows, weight = x[token], gates[token, place, None]
        gate, value = (rows @ up.mT).chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        hidden = silu * value
        y = hidden @ down.mT
        output.index_add_(0, token, weight * y)
        g = grad[token]
        dgates[token, place] = (g * y).sum(-1)
        g = weight * g
        ddown[expert] = g.mT @ hidden
        dhidden = g @ down
        dpre = torch.cat((dhidden * value * (sigmoid + silu * (1 - sigmoid)), dhidden * silu), dim=-1)
        dup[expert] = dpre.mT @ rows
        dx.index_add_(0, token, dpre @ up)
    return Expected(output, dx, dgates, dup, ddown)


def agreement(layer: Layer, workload: Workload, expected: Expected) -> dict[str, float]:
    """Returns the relative error of the output and of every gradient that the layer gives in the workload's layout."""
    x = workload.x.detach().requires_grad_()
    output = layer.forward(x)
    grads = torch.autograd.grad(output, [x, *layer.leaves.values()], workload.grad)
    gradients = layer.canonical(dict(zip(layer.leaves, grads[1:], strict=True)))
    compared = {"output": output.detach(), "x": grads[0], **gradients}
    return {name: relative_error(tensor, getattr(expected, name)) for name, tensor in compared.items()}


@torch.no_grad()
def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Returns ``||actual - expected|| / ||expected||``, infinite where ``actual`` is not finite.

    Taken over slices of the first dimension, so that stacked weights are never widened all at once.
    """
    actual, expected = actual.flatten(1), expected.flatten(1)
    rows = max(1, _ELEMENTS_AT_ONCE // max(1, expected.shape[1]))
    error = torch.zeros((), dtype=torch.float64, device=expected.device)
    norm = torch.zeros_like(error)
    for one, other in zip(actual.split(rows), expected.split(rows), strict=True):
        error += (one.to(other.dtype) - other).norm().double() ** 2
        norm += other.norm().double() ** 2
    relative = float((error / norm.clamp(min=1e-300)).sqrt())
    return relative if relative == relative else float("inf")


def disagreement(errors: dict[str, float], dtype: torch.dtype) -> float | None:
    """Returns the worst error if it is above the tolerance of ``dtype``, else None."""
    worst = max(errors.values(), default=0.0)
    return worst if worst > TOLERANCE[dtype] else None
