"""Starting recorded launches again and again, each time from what their tensors held at first.

A kernel may work in place, or add to what is there: started on its own output it would compute something else, and one
that reads places from memory could write anywhere.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import Step
from moekit_kernels import runtime


def start(one: runtime.Launch) -> None:
    """Starts a recorded launch."""
    runtime.launch(one.kernel, one.grid, one.arguments, num_warps=one.num_warps, num_stages=one.num_stages)


def replay(launches: Sequence[runtime.Launch], first_start: Callable[[runtime.Launch], object] = start) -> Step:
    """Returns a step that starts ``launches`` in order, after their tensors have been restored, which is not timed.

    The launches are started once here. What they changed is kept as it was before; all else is freed.

    Args:
        launches: What :func:`moekit_kernels.runtime.record` collected.
        first_start: Starts a launch for the first time: the place to look at its compiled code.
    """
    before = [(tensor, tensor.clone()) for tensor in tensors_of(launches)]
    for one in launches:
        first_start(one)
    changed = [(tensor, copy) for tensor, copy in before if not torch.equal(tensor, copy)]
    del before

    def restore() -> None:
        for tensor, copy in changed:
            tensor.copy_(copy)

    def body(_: object) -> None:
        for one in launches:
            start(one)

    return Step(body, restore)


def tensors_of(launches: Sequence[runtime.Launch]) -> list[Tensor]:
    """Returns the tensors among the arguments, each view of memory once."""
    views: dict[tuple[object, ...], Tensor] = {}
    for one in launches:
        for value in one.arguments.values():
            if isinstance(value, Tensor):
                views.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), value)
    return list(views.values())
