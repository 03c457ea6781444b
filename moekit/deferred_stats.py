"""Statistics that are computed when they are read.

On few tokens the sums of a routing take a tenth of a layer's time on CPU or more, and most calls are of inference or of
training without an auxiliary loss, which never read them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from moekit.plan import DispatchPlan
from moekit.routing import CountedTokens, RouterStats, Routing, make_stats, sum_up
from moekit_kernels.eager import is_plain_eager


class _Call(NamedTuple):
    """What the statistics of a call are computed from; nothing of it is larger than ``(T, E)``.

    Attributes:
        routing: Of the call.
        counted: All of its tokens.
        tokens_per_expert: Of the plan.
        dropped_per_expert: Of the plan.
        versions: Of the tensors of the routing, where they are counted: whether they were modified since.
        grad_enabled: Whether autograd recorded the call.
        inference: Whether it was in inference mode.
    """

    routing: Routing
    counted: CountedTokens
    tokens_per_expert: Tensor
    dropped_per_expert: Tensor
    versions: tuple[int | None, ...]
    grad_enabled: bool
    inference: bool

    def compute(self) -> RouterStats:
        counts = self.routing, self.tokens_per_expert, self.dropped_per_expert, None
        if torch.compiler.is_compiling():  # compiled code reads no values, and cannot ask what follows
            return sum_up(*counts, self.counted._replace(are_all=False))
        if _versions(self.routing) != self.versions:
            raise RuntimeError(
                "statistics of a layer are computed from its routing when they are first read, but gates, ids, logits "
                "or probabilities of that were modified in place since: read them before, or modify a copy."
            )
        if torch.is_grad_enabled() == self.grad_enabled and torch.is_inference_mode_enabled() == self.inference:
            return sum_up(*counts, self.counted)
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.grad_enabled):
            return sum_up(*counts, self.counted)


def stats_of_call(
    routing: Routing, plan: DispatchPlan, mask: Tensor | None, counted: CountedTokens | None
) -> RouterStats:
    """Returns the statistics of a call that made its own routing.

    They are computed when they are first read, in plain eager code on CPU where all tokens count; else at once.

    Args:
        routing: The decisions of the router.
        plan: The plan made from it.
        mask: True for the tokens that count; all by default.
        counted: Which tokens count, where that is known.

    Raises:
        ValueError: As :func:`~moekit.router_stats`.
    """
    # That all count is known only where values could be read.
    if mask is not None or counted is None or not counted.are_all or routing.sums is not None or routing.probs is None:
        return make_stats(routing, plan, mask, counted)
    call = _Call(
        routing,
        counted,
        plan.tokens_per_expert,
        plan.dropped_per_expert,
        _versions(routing),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    return DeferredStats(call)


def _versions(routing: Routing) -> tuple[int | None, ...]:
    """Returns how often each tensor was modified in place; None for one of inference mode, which does not count."""
    return tuple([None if t is None or t.is_inference() else t._version for t in routing[:4]])


def _field(place: int) -> Any:
    def read(stats: "DeferredStats") -> Tensor:
        return stats.computed()[place]

    return property(read)


class DeferredStats(RouterStats):
    """Statistics of a call that are computed, with their gradients, when a field is first read.

    In everything that Python sees it is a :class:`~moekit.RouterStats`; copied, pickled, flattened as a pytree and
    built again, or changed by ``_replace``, it becomes a plain one. The tuple below holds no values: code that reads
    the memory of a tuple instead of asking it would find None.

    Args:
        call: What they are computed from.
    """

    # A NamedTuple's ``__new__`` takes its fields; so does this where a pytree is built again.
    def __new__(cls, *values: Any) -> "RouterStats":
        """Returns deferred statistics of a call, or plain ones of the nine fields."""
        if len(values) == len(RouterStats._fields):
            return RouterStats(*values)
        stats = tuple.__new__(cls, (None,) * len(RouterStats._fields))
        (stats._call,) = values
        return stats

    _call: _Call
    _computed: RouterStats | None = None

    def computed(self) -> RouterStats:
        """Returns plain statistics, computed in the first call."""
        if self._computed is not None:
            return self._computed
        computed = self._call.compute()
        # Inside of a mode or a transform, or traced, results may be valid there only.
        if is_plain_eager():
            self._computed = computed
            del self._call
        return computed

    def __iter__(self) -> Iterator[Tensor]:
        """Iterates over the fields."""
        return iter(self.computed())

    def __getitem__(self, place: Any) -> Any:
        """Returns a field, or a tuple of some."""
        return cast(Any, self.computed())[place]

    def __repr__(self) -> str:
        """Shows the fields."""
        return repr(self.computed())

    def __eq__(self, other: object) -> bool:
        """Compares as tuples do."""
        return tuple(self) == (tuple(cast(tuple[Tensor, ...], other)) if isinstance(other, tuple) else other)

    def __ne__(self, other: object) -> bool:
        """Compares as tuples do."""
        return not self == other

    def __hash__(self) -> int:
        """Hashes the fields."""
        return hash(self.computed())

    def __contains__(self, value: object) -> bool:
        """Looks for a field."""
        return value in tuple(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., RouterStats], tuple[Tensor, ...]]:
        """Pickles and copies as plain statistics."""
        return RouterStats, tuple(self)

    @classmethod
    def _make(cls, iterable: Any) -> RouterStats:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns plain statistics, as ``_replace`` does."""
        return RouterStats._make(iterable)


for _place, _name in enumerate(RouterStats._fields):
    setattr(DeferredStats, _name, _field(_place))
