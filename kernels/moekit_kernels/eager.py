"""Operations that plain eager code calls without the dispatcher.

A registered operation is what compilers, exporters, modes and transforms see. In plain eager execution none of them is
there, and the Python wrappers of the registration are a large part of a small call: measured 6.8 µs without gradients
and 12.8 µs with, against 3.0 and 4.1 µs for the same function and ``torch.autograd.Function`` called directly.
:class:`Operation` is both:

    @operation("moekit::scale")
    def scale(x: Tensor, factor: float) -> Tensor: ...

    scale.register_fake(...)
    scale.register_autograd(backward, setup_context=save)
    scale(x, 2.0)

On a GPU, a call of a kind that was made before repeats its launches (:mod:`moekit_kernels.repeated`), both ways.

A call is plain eager where :func:`is_plain_eager` holds. Then the function itself runs, inside an
``autograd.Function`` made of the same ``setup_context`` and ``backward`` where a gradient is needed; saved tensors pass
the hooks of ``torch.autograd.graph.saved_tensors_hooks`` (activation checkpointing, offloading) as ever. Any other call
goes through the registered operation.
"""

import warnings
from collections.abc import Callable
from operator import attrgetter
from types import NoneType
from typing import Any, cast, get_type_hints

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._library import autograd as library_autograd
from torch.nn import Parameter

from moekit_kernels.repeated import Repeatable

# Subclasses (DTensor, fake tensors, quantised weights) decide for themselves what an operation does, and so do symbols.
_PLAIN_TYPES = frozenset({Tensor, Parameter, NoneType, bool, int, float, str})
_TENSOR_TYPES = frozenset({Tensor, Parameter})

_requires_grad = attrgetter("requires_grad")

# So few values are read sooner than reduced by a tensor operation.
_FEW = 128

# No public functions tell as cheaply (40 ns each) whether a mode or a transform is active.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack  # pyright: ignore
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore
_tracer: Callable[[], object] = torch._C._get_tracing_state  # pyright: ignore
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active  # pyright: ignore


def is_plain_eager(*arguments: object) -> bool:
    """Returns whether a call with these arguments may bypass the dispatcher; costs about 1 µs.

    That is so unless

    - ``torch.compile``, ``torch.export``, ``make_fx`` or ``torch.jit.trace`` traces the call;
    - a ``TorchDispatchMode`` (``FlopCounterMode``, selective checkpointing) or a ``TorchFunctionMode``
      (``torch.set_default_device``) is active;
    - a transform of ``torch.func`` or a level of forward-mode differentiation is open;
    - a tensor is of a subclass other than ``Parameter``, is on the meta device, or is a lazily negated view;
    - an argument is a symbol, or of a type that no schema of this package has.

    Args:
        arguments: Those of the operation.
    """
    # First, because the compiler evaluates it and does not trace what follows.
    if torch.compiler.is_compiling():
        return False
    if _dispatch_modes() or _function_modes() or _transforms_active():
        return False
    if forward_ad._current_level >= 0 or _tracer() is not None:  # pyright: ignore[reportPrivateUsage]
        return False
    for each in arguments:
        kind = type(each)
        if kind in _TENSOR_TYPES:
            tensor = cast(Tensor, each)
            if tensor.is_meta or tensor.is_neg():
                return False
        elif kind not in _PLAIN_TYPES:
            return False
    return True


def _tensors(arguments: tuple[object, ...]) -> list[Tensor]:
    """Returns the tensors among plain arguments."""
    return cast(list[Tensor], [each for each in arguments if type(each) in _TENSOR_TYPES])


def can_read(tensor: Tensor) -> bool:
    """Returns whether the values of a tensor may be read here: it is on CPU, so nothing waits, in plain eager code."""
    return tensor.is_cpu and is_plain_eager(tensor)


def all_true(mask: Tensor) -> bool:
    """Returns whether a boolean tensor is known to be True everywhere; False where it cannot be read."""
    return can_read(mask) and (
        all(cast(list[bool], mask.flatten().tolist())) if mask.numel() <= _FEW else bool(mask.all())
    )


def needs_gradient(*arguments: object) -> bool:
    """Returns whether autograd has to record a call with these plain arguments."""
    return torch.is_grad_enabled() and any(map(_requires_grad, _tensors(arguments)))


class Operation:
    """A registered operation that plain eager code calls directly; made by :func:`operation`.

    Attributes:
        registered: The operation of ``torch.library``, for tools such as ``opcheck``.
        compute: The function itself, which starts again what it started in an earlier call of the same kind.
    """

    def __init__(self, name: str, compute: Callable[..., Any]) -> None:
        self.compute = Repeatable(compute)
        schema = torch.library.infer_schema(compute, mutates_args=())
        self.registered = torch.library.custom_op(name, self.compute, mutates_args=(), schema=schema)
        self._library = _call_directly(name, self.registered, self.compute)
        self._apply: Callable[..., Any] = self.registered

    def __call__(self, *arguments: Any) -> Any:
        """Computes, and records for autograd what it needs; arguments are positional, as in the schema."""
        if not is_plain_eager(*arguments):
            return self.registered(*arguments)
        return (self._apply if needs_gradient(*arguments) else self.compute)(*arguments)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the function that computes shapes; see ``CustomOpDef.register_fake``."""
        self.registered.register_fake(fake)
        return fake

    def register_vmap(self, rule: Callable[..., tuple[Any, Any]]) -> None:
        """Registers the rule for ``torch.vmap``; see ``CustomOpDef.register_vmap``."""
        self.registered.register_vmap(rule)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Registers the gradient, for both ways to call; see ``CustomOpDef.register_autograd``.

        Args:
            backward: ``(ctx, *output gradients)`` to one gradient or None for each argument of the schema.
            setup_context: ``(ctx, inputs, output)``; saves what ``backward`` reads.
        """
        self.registered.register_autograd(backward, setup_context=setup_context)
        # Gradients of a list come as a list, which ``autograd.Function`` does not know.
        if get_type_hints(self.compute)["return"] != list[Tensor]:
            self._apply = _function(self.compute, backward, setup_context)


def operation(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Returns a decorator that registers a function without side effects as ``name`` (``namespace::operation``)."""

    def register(compute: Callable[..., Any]) -> Operation:
        return Operation(name, compute)

    return register


def _call_directly(name: str, registered: Any, compute: Callable[..., Any]) -> torch.library.Library:
    """Has the dispatcher call the function itself for a registered call that is plain and needs no gradient.

    Compiled code makes such calls. What ``custom_op`` puts around the function for them takes some 10 µs: it leaves
    autograd once more and looks for results that are aliases of arguments.

    Returns:
        What holds the registration.
    """
    namespace, short = name.split("::")
    # No public function returns what ``custom_op`` registers for autograd.
    make: Callable[..., Callable[..., Any]] = cast(Any, library_autograd).make_autograd_impl
    with_gradient = make(getattr(getattr(torch.ops, namespace), short).default, registered)

    def call(keyset: Any, *arguments: Any) -> Any:
        if is_plain_eager(*arguments) and not needs_gradient(*arguments):
            return compute(*arguments)
        return with_gradient(keyset, *arguments)

    library = torch.library.Library(namespace, "FRAGMENT")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl(short, call, "Autograd", with_keyset=True, allow_override=True)
    return library


def _function(
    compute: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    # Named as what it computes: profilers show the name.
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return cast(Any, type(compute.__name__.strip("_"), (torch.autograd.Function,), body)).apply
