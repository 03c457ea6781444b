"""Whether tokens are gathered into memory before a product, or inside it.

The experts' products read tokens in the order of a plan. Two ways lead there:

- *inside*: the product loads every row through a pointer. Nothing is copied, but the threads compute addresses, and the
  product is slower than one whose operands all come through the copy engine;
- *into memory*: one pass writes the rows in their order first (:mod:`moekit_kernels.plan.launches_rows`), and tensor
  descriptors read them.

For ``N`` rows of ``D`` 16-bit numbers and ``K`` rows for each token the pass moves ``2 D (N + N / K)`` bytes: each
token is read once, each row written once (``4 D N`` for expert choice, which reads every row). A product with ``C``
columns takes ``2 N D C / rate``. So the pass pays where, for each number of a row::

    2 C (1 / rate by pointers - 1 / rate by descriptors)  >  2 (1 + 1 / K) / bandwidth,

and what is left over all ``N * D`` numbers is more than one more launch costs. The rates and the bandwidth are those of
one H100 (:data:`RATES`, :data:`BANDWIDTH`). With them the least ``C`` for ``K = 8`` is 1582 for the up product, 611 for
the gradient of the up matrices, and 587 for the output's gradient, which serves two products. So of four SwiGLU shapes
that were measured, Mixtral (F = 14336) and OLMoE (F = 1024) gather all three into memory, Qwen3 (F = 768) all but the
tokens of the up product, and one with F = 512 the tokens for the gradient of the up matrices alone.
"""

import functools
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from moekit_kernels.configs import is_aligned
from moekit_kernels.overrides import Override
from moekit_kernels.targets import Target


class Gathers(NamedTuple):
    """Which rows are gathered into memory; where False, the products gather them inside.

    Attributes:
        up: Tokens, for the up product, in forward and where ``recompute="all"`` computes it again.
        grad: The gradient of the output, for the product through the activation and the gradient of the down matrices.
        tokens: Tokens again, for the gradient of the up matrices.
    """

    up: bool
    grad: bool
    tokens: bool


class Rates(NamedTuple):
    """FLOP/s of one product of 16-bit operands on one H100, the mean of three shapes.

    Attributes:
        pointers: With its rows gathered inside.
        descriptors: With rows in the order of the plan.
    """

    pointers: float
    descriptors: float


RATES = {
    "up": Rates(599e12, 697e12),  # 601, 626, 569 and 650, 719, 722
    "activation": Rates(395e12, 438e12),  # 335, 427, 425 and 368, 492, 453
    "down gradient": Rates(529e12, 664e12),  # 534, 518, 534; by descriptors as below, not measured alone
    "up gradient": Rates(473e12, 664e12),  # 470, 470, 479 and 678, 635, 680
}
"""What was measured for Qwen3-30B-A3B, Mixtral 8x7B and D = 4096, F = 512, E = 128, K = 8 (``docs/kernels.md``)."""

BANDWIDTH = 3.03e12
"""Bytes a second that a copy moves on one H100."""

LAUNCH = 20e-6
"""Seconds of one more launch: some 5 of the GPU and up to 15 of Python, for which the GPU waits at small sizes."""

_override: Override[Gathers] = Override()


def gathers(
    target: Target,
    dtype: torch.dtype,
    num_tokens: int,
    num_rows: int,
    widths: tuple[int, int, int, int],
    *,
    read_once: bool = True,
    weight_grad: bool = True,
) -> Gathers:
    """Returns which passes gather their rows into memory first; see the arithmetic at the top of this file.

    Never without tensor descriptors (sm_80, sm_86, gfx942), for float32 (whose products are several times slower, so
    that loads by pointers keep up), or where a row is not a multiple of 16 bytes. On sm_100 nothing was measured; it
    has some 2.5 times the bandwidth and 2.3 times the FLOP/s of an H100, so the same widths are taken.

    Args:
        target: Where it runs.
        dtype: Of the operands.
        num_tokens: ``T``.
        num_rows: ``N``.
        widths: ``(D, F1, F, D2)``: of the tokens, the pre-activations, the hidden rows and the output.
        read_once: Whether each token is read once for all its rows: for a fixed number of rows each.
        weight_grad: Whether the gradients of the weights are computed, which read the gradient of the output too.
    """
    return _gathers(target, dtype, num_tokens, num_rows, widths, read_once, weight_grad, _override.value)


@functools.lru_cache(maxsize=1024)
def _gathers(
    target: Target,
    dtype: torch.dtype,
    num_tokens: int,
    num_rows: int,
    widths: tuple[int, int, int, int],
    read_once: bool,
    weight_grad: bool,
    chosen: Gathers | None,
) -> Gathers:
    dim, up_columns, hidden, out_dim = widths
    if not target.tma or dtype.itemsize != 2 or not is_aligned(dtype, *widths) or num_rows == 0:
        return Gathers(False, False, False)
    if chosen is not None:
        return chosen
    read = num_tokens if read_once else num_rows

    def pays(width: int, seconds_for_each_number: float) -> bool:
        moved = dtype.itemsize * width * (num_rows + read) / BANDWIDTH
        return num_rows * width * seconds_for_each_number > moved + LAUNCH

    grad = _saved("activation", hidden) + weight_grad * _saved("down gradient", hidden)
    return Gathers(
        up=pays(dim, _saved("up", up_columns)),
        grad=pays(out_dim, grad),
        tokens=weight_grad and pays(dim, _saved("up gradient", up_columns)),
    )


def _saved(product: str, columns: int) -> float:
    """Returns the seconds that descriptors save for each number of the rows."""
    rates = RATES[product]
    return 2 * columns * (1 / rates.pointers - 1 / rates.descriptors)


def override(*, up: bool, grad: bool, tokens: bool) -> AbstractContextManager[None]:
    """Sets :func:`gathers` by hand, for a block of code, wherever the target and the operands allow it.

    It holds for the whole process, because backward runs in threads of autograd: keep a backward pass inside.

    Example:
        >>> with override(up=True, grad=True, tokens=True):
        ...     pass  # layers that run here gather all rows into memory, forward and backward
    """
    return _override.set_to(Gathers(up, grad, tokens))
