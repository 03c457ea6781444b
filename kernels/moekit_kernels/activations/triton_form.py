"""The Triton form of an activation: a pair of ``@triton.jit`` functions that kernels call as a compile-time argument.

Triton takes any object as a ``tl.constexpr`` argument. It looks for compiled code by the object itself in memory, and
by its ``cache_key`` on disk, which changes with the source of the functions.
"""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any, final

from moekit_kernels.availability import interpreting

Constant = bool | int | float


@final
class TritonActivation:
    """What kernels compute of an activation; equal to another of the same functions and constants.

    A function of one number is called as ``function(x, *constants)``, one of gate and value as
    ``function(gate, value, *constants)``; operands are tiles in float32, and so are the results.

    Args:
        function: ``@triton.jit``; returns the activation.
        with_derivatives: ``@triton.jit`` with the same parameters; returns the activation and its derivative, or the
            activation and its derivatives by gate and by value.
        constants: Compile-time constants, passed in their order to the last parameters of both, which are annotated
            ``tl.constexpr``.
        zero_at_zero: Whether the activation of zeros is zero: kernels then need no mask for columns that pad a tile.

    Raises:
        ValueError: If one is no ``@triton.jit`` function of one or two tiles, or they take different parameters.
    """

    def __init__(
        self,
        function: Any,
        with_derivatives: Any,
        constants: Sequence[Constant] = (),
        *,
        zero_at_zero: bool = False,
    ) -> None:
        self.function = function
        self.with_derivatives = with_derivatives
        self.numbers = tuple(constants)
        self.zero_at_zero = zero_at_zero
        counts = [_num_tiles(name, getattr(self, name), len(self.numbers)) for name in ("function", "with_derivatives")]
        if counts[0] != counts[1]:
            raise ValueError(
                "with_derivatives must take the parameters of function, "
                f"got {with_derivatives.arg_names} and {function.arg_names}."
            )
        self.takes_value = counts[0] == 2
        self.constants = _kernel_constants(self.numbers)

    def _contents(self) -> tuple[Any, ...]:
        # With their types: Triton compiles for 1 otherwise than for 1.0.
        return self.function, self.with_derivatives, self.numbers, tuple(map(type, self.numbers)), self.zero_at_zero

    def __eq__(self, other: object) -> bool:
        """Compares functions and constants."""
        return isinstance(other, TritonActivation) and self._contents() == other._contents()

    def __hash__(self) -> int:
        """Equal ones have equal hashes."""
        return hash(self._contents())

    @property
    def cache_key(self) -> str:
        """Changes with the source of the functions, and of all that they call."""
        keys = (self.function.cache_key, self.with_derivatives.cache_key, repr(self.numbers), str(self.zero_at_zero))
        return hashlib.sha256("-".join(keys).encode()).hexdigest()

    def __str__(self) -> str:
        """Shows the function and its constants."""
        numbers = ",".join(map(repr, self.numbers))
        return f"{self.function.__name__}({numbers})" if numbers else self.function.__name__

    def __repr__(self) -> str:
        """Shows the function and the key: Triton makes a name in its code of it."""
        return f"{self.function.__name__}_{self.cache_key[:16]}" if hasattr(self.function, "cache_key") else str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the functions by the names under which their modules hold them."""
        names = [(function.__module__, function.__name__) for function in (self.function, self.with_derivatives)]
        return _restore, (*names, self.numbers, self.zero_at_zero)


def _restore(
    function: tuple[str, str], with_derivatives: tuple[str, str], constants: Sequence[Constant], zero_at_zero: bool
) -> TritonActivation:
    one, other = (getattr(importlib.import_module(module), name) for module, name in (function, with_derivatives))
    return TritonActivation(one, other, constants, zero_at_zero=zero_at_zero)


def _num_tiles(argument: str, function: Any, num_constants: int) -> int:
    """Returns how many tiles a function takes: 1, or 2 for gate and value."""
    names: list[str] | None = getattr(function, "arg_names", None)
    if names is None:
        raise ValueError(f"{argument} must be a function with the decorator @triton.jit, got {function!r}.")
    count = len(names) - num_constants
    if count not in (1, 2):
        raise ValueError(
            f"{argument} must take x, or gate and value, and then the {num_constants} constants, "
            f"got the parameters {names}."
        )
    return count


def _kernel_constants(numbers: tuple[Constant, ...]) -> Any:
    """Returns the constants as ``*constants`` reads them inside a kernel: interpreted, that is Python."""
    if interpreting():
        return numbers
    import triton.language as tl

    constexpr: Any = tl.constexpr
    return tl.tuple([constexpr(number) for number in numbers])
