"""What traces a call, as the operations ask for it."""

import pytest
import torch
from torch import Tensor, nn

from moekit_kernels.transforms import is_exported, is_traced


class _Answer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x + is_exported(), x + is_traced()))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_exported_and_traced(strict):
    x = torch.zeros(2)
    program = torch.export.export(_Answer(), (x,), strict=strict)
    assert torch.equal(program.module()(x), torch.ones(2, 2))


def test_compiled_code_is_traced_and_not_exported():
    x = torch.zeros(2)
    compiled = torch.compile(_Answer(), backend="eager", fullgraph=True)
    assert compiled(x).tolist() == [[0, 0], [1, 1]]
    assert _Answer()(x).tolist() == [[0, 0], [0, 0]]
