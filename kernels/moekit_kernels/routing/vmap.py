"""The rule of ``torch.vmap`` for the routing operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def one_after_another(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Returns a rule for ``torch.vmap``: one call after the other, because each has sums of its own."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def call(sample: int) -> Any:
            return op(*(a if d is None else a.select(d, sample) for a, d in zip(args, in_dims, strict=True)))

        outputs = [call(sample) for sample in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        fields = tuple(torch.stack(field) for field in zip(*outputs, strict=True))
        return fields, (0,) * len(fields)

    return rule
