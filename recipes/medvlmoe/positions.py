"""How the learned positions of tokens begin."""

import math

import torch
from torch import Tensor


def sine_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Computes a code of rows and columns, in which any place of the grid can be told from the others by a dot product.

    A quarter of the features each are ``sin(f x)``, ``cos(f x)``, ``sin(f y)`` and ``cos(f y)``, with ``x`` and ``y``
    the middles of the cells in (0, 1), and frequencies ``f`` from one half turn over the image to one for each cell, so
    that none is lost on a small grid.

    Args:
        grid: Rows and columns.
        dim: Width; features that are left over, up to three, are zero.

    Returns:
        ``(1, rows * columns, dim)``, row by row; root mean square 0.7.

    Reference:
        The sine code of Vaswani et al. 2017 (section 3.5) for two dimensions, with frequencies of the grid in place of
        ``10000^(-2i/d)``.
    """
    quarter, (rows, columns) = dim // 4, grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    frequencies = math.pi * torch.logspace(0.0, math.log10(max(rows, columns)), quarter)
    across, down = x.flatten()[:, None] * frequencies, y.flatten()[:, None] * frequencies
    code = torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1)
    return torch.nn.functional.pad(code, (0, dim - 4 * quarter)).unsqueeze(0)
