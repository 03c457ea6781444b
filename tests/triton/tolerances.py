"""How far a kernel may be from the float64 reference of the same operands.

``||actual - expected|| <= RELATIVE * ||expected||`` over each tensor, and no element further off than ``ELEMENT``
times the largest magnitude of the tensor.
"""

import torch
from torch import Tensor

from moekit_kernels.availability import interpreting

RELATIVE = {
    torch.float32: 2e-6,  # 6e-8 a rounding; sums of up to some hundred terms, three of them in a row
    torch.float16: 2e-3,  # 5e-4 a rounding of a stored value; pre-activation, hidden, output and their gradients
    # 4e-3 a rounding of a stored value, as above; the interpreter cuts off where a GPU rounds to the nearest
    torch.bfloat16: 3e-2 if interpreting() else 1.5e-2,
}
ELEMENT = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 8e-2 if interpreting() else 4e-2}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str = "", least: float = 0.0) -> None:
    """Compares at the tolerance of operands of ``dtype``; NaN must meet NaN.

    ``least`` is the least magnitude, of the tensor and of its largest element, that errors are compared with: for
    tensors of so few elements that their terms may cancel in all of them.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{name}: NaN in other places than expected"
    error = (actual - expected).nan_to_num()
    scale = expected.nan_to_num()
    relative = (error.norm() / scale.norm().clamp(min=max(least, 1e-30))).item() if expected.numel() else 0.0
    worst = (error.abs().max() / scale.abs().max().clamp(min=max(least, 1e-30))).item() if expected.numel() else 0.0
    assert relative <= RELATIVE[dtype] or error.norm() == 0, f"{name}: relative error {relative:.2e}"
    assert worst <= ELEMENT[dtype] or error.norm() == 0, f"{name}: worst element off by {worst:.2e} of the largest"
