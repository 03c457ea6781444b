"""Activations as objects, and the registry through which operations find them by name."""

import threading
from collections.abc import Callable
from typing import Any, cast, final

from torch import Tensor

from moekit_kernels.activations.plain import GLU, Elementwise, Form, Pair, Parts, Scalar, TimesDerivative
from moekit_kernels.activations.triton_form import TritonActivation

TritonForm = TritonActivation | Callable[[], TritonActivation]


@final
class Activation:
    """An activation of expert FFNs: a function of one number, or of a gate and a value.

    It is registered under its name when it is made. Layers and operations take it, or its name, as ``activation``.
    It does not change afterwards; a copy is the same object, and pickled it is found by its name again.

    A *gated* activation (a GLU, Shazeer 2020, https://arxiv.org/abs/2002.05202) reads ``2F`` columns and gives ``F``.
    They are *concatenated*, ``F`` of the gate and then ``F`` of the value (``transformers``' ``gate_up_proj``), or
    *interleaved*, column ``2f`` of the gate and ``2f + 1`` of the value (GPT-OSS).

    Which experts run fused: on CPU those whose activation has ``derivatives``, on a GPU those whose activation has
    ``triton``. The others run as separate operations, and autograd differentiates ``function``.

    Args:
        name: Unique name.
        function: Plain PyTorch, element by element and differentiable: ``(x) -> y``; if gated
            ``(gate, value) -> y``.
        derivatives: ``(x) -> dy/dx``; if gated ``(gate, value) -> (dy/dgate, dy/dvalue)``.
        gated: Whether it is a function of gate and value.
        interleaved: Whether gate and value alternate.
        triton: The same function for Triton kernels; or a function without arguments that returns that, so that
            Triton is imported only where a kernel starts.

    Raises:
        ValueError: If the name is empty or belongs to another activation, an argument is no function, or the
            arguments contradict each other.

    Example:
        >>> import torch
        >>> from moekit_kernels.activations import Activation
        >>> softplus_glu = Activation("softplus_glu", lambda gate, value: gate.exp().log1p() * value, gated=True)
        >>> softplus_glu(torch.tensor([[0.0, 2.0]]))  # a gate, and a value
        tensor([[1.3863]])
    """

    name: str
    gated: bool
    interleaved: bool
    compute: Callable[[Tensor], Tensor]
    recompute: Callable[[Tensor], tuple[Tensor, Parts | None]]
    backward: Callable[..., Tensor]

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        derivatives: Callable[..., Any] | None = None,
        *,
        gated: bool = False,
        interleaved: bool = False,
        triton: TritonForm | None = None,
    ) -> None:
        for argument, value in (("function", function), ("derivatives", derivatives)):
            if not callable(value) and not (argument == "derivatives" and value is None):
                raise ValueError(f"{argument} must be a function of plain PyTorch, got {value!r}.")
        if interleaved and not gated:
            raise ValueError(f"interleaved needs gated=True, got gated={gated!r}: only a gate and a value alternate.")
        if isinstance(triton, TritonActivation) and triton.takes_value != gated:
            takes = "gate and value" if gated else "x alone"
            raise ValueError(
                f"triton must take {takes}, as gated={gated!r} says, got {triton}{tuple(triton.function.arg_names)}."
            )
        form: Form
        if gated:
            form = Pair(function, derivatives, interleaved)
        else:
            backward = None if derivatives is None else TimesDerivative(derivatives)
            form = Elementwise(Scalar(function, backward, False))
        self._set_up(name, form, triton)
        register(self)

    def _set_up(self, name: str, form: Form, triton: TritonForm | None) -> None:
        self.name = name
        self.gated, self.interleaved = form.gated, form.interleaved
        self.form = form
        self.compute, self.recompute, self.backward = form.compute, form.recompute, form.backward
        self.has_derivatives, self.has_triton = form.has_derivatives, triton is not None
        self._triton = triton

    @staticmethod
    def from_form(name: str, form: Form, triton: TritonForm | None) -> "Activation":
        """Makes an activation of its plain form, and registers it."""
        activation = object.__new__(Activation)
        activation._set_up(name, form, triton)
        register(activation)
        return activation

    @property
    def triton(self) -> TritonActivation | None:
        """What kernels compute of it, or None."""
        if callable(self._triton):
            self._triton = self._triton()
        return self._triton

    def __call__(self, pre: Tensor) -> Tensor:
        """Computes ``(..., F or 2F) -> (..., F)``, differentiable."""
        return self.form.forward(pre)

    def __repr__(self) -> str:
        """Shows the name."""
        return f"Activation({self.name!r})"

    def __copy__(self) -> "Activation":
        return self

    def __deepcopy__(self, memo: object) -> "Activation":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.name in BUILT_IN:
            return activation_of, (self.name,)
        return _restore, (self.name, self.form, self._triton)


ACTIVATIONS: dict[str, Activation] = {}
"""Every activation of this process by its name: those of the package, and those made since."""

BUILT_IN: set[str] = set()
"""Names of the activations that the package makes when it is imported."""

_lock = threading.RLock()


def register(activation: Activation) -> None:
    """Registers an activation.

    Raises:
        ValueError: If its name is empty, or that of another one.
    """
    name = activation.name
    if not isinstance(cast(object, name), str) or not name:
        raise ValueError(f"name must be a string that is not empty, got {name!r}.")
    with _lock:
        if name in ACTIVATIONS:
            raise ValueError(
                f"name must be unique, but there is an activation {name!r}: choose another name, "
                "or take the one that is there, moekit.activations.activation_of(name)."
            )
        ACTIVATIONS[name] = activation


def registered(name: str, make: Callable[[], Activation]) -> Activation:
    """Returns the activation of a name, made first if there is none."""
    with _lock:
        return ACTIVATIONS[name] if name in ACTIVATIONS else make()


def activation_of(activation: str | Activation) -> Activation:
    """Returns the activation of a name; an activation is returned as it is.

    Raises:
        ValueError: If there is none of that name in this process.
    """
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(_unknown(activation))
    return ACTIVATIONS[activation]


def glu(activation: str | Activation, *, interleaved: bool = False, name: str | None = None) -> Activation:
    """Makes the gated form of a function of one number: ``activation(gate) * value``.

    Its kernels need no Triton functions but those of ``activation``.

    Args:
        activation: An activation that is not gated, or its name.
        interleaved: Whether gate and value alternate.
        name: ``"glu(NAME)"`` by default, with ``"_interleaved"`` if so.

    Returns:
        The activation; the same for the same arguments.

    Raises:
        ValueError: If ``activation`` is gated or unknown, or the name belongs to another one.

    Example:
        >>> import torch
        >>> from moekit_kernels.activations import glu
        >>> glu("relu")(torch.tensor([[1.0, -1.0, 5.0, 6.0]]))
        tensor([[5., 0.]])
    """
    scalar = activation_of(activation)
    if not isinstance(scalar.form, Elementwise):
        raise ValueError(f"activation must be a function of one number, got {scalar!r}, which is gated.")
    name = f"glu({scalar.name}){'_interleaved' * interleaved}" if name is None else name
    form = GLU(scalar.form.scalar, interleaved)
    existing = ACTIVATIONS.get(name)
    if existing is not None and existing.form == form:
        return existing
    return Activation.from_form(name, form, scalar._triton)  # pyright: ignore[reportPrivateUsage]


def activate(activation: "str | Activation | Callable[[Tensor], Tensor]", pre: Tensor) -> Tensor:
    """Computes ``(..., F1) -> (..., F)`` by an activation, its name or a function; differentiable."""
    if callable(activation) and not isinstance(activation, Activation):
        return activation(pre)
    return activation_of(activation).form.forward(pre)


def name_or_function(activation: object) -> object:
    """Returns the name of an activation; a name or a function as it is."""
    return activation.name if isinstance(activation, Activation) else activation


def label(activation: object) -> str:
    """Returns how messages and the ``repr`` of a module show an activation, a name or a function."""
    if isinstance(activation, str | Activation):
        return repr(activation)
    return getattr(activation, "__name__", repr(activation))


def _unknown(name: object) -> str:
    names = ", ".join(map(repr, ACTIVATIONS))
    return (
        f"activation must be one of {names}, an Activation or a function, got {name!r}. (An activation that a program "
        "was saved with must be made before it runs.)"
    )


def _restore(name: str, form: Form, triton: TritonForm | None) -> Activation:
    return registered(name, lambda: Activation.from_form(name, form, triton))
