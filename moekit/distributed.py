"""Statistics over ranks."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as differentiable  # collectives with a gradient

from moekit.routing import RouterStats


def all_reduce_stats(stats: RouterStats, group: dist.ProcessGroup | None = None) -> RouterStats:
    """Adds statistics up over the ranks of ``group``; a loss of the sum is that of the global batch.

    Differentiable: each rank's sums receive the gradients of all ranks' losses. With DDP, which averages
    gradients over ranks, a loss of global statistics therefore counts once, as it should.

    Args:
        stats: This rank's statistics.
        group: Process group; the default group if None.

    Returns:
        The same on every rank; ``stats`` itself where no process group is initialised.
    """
    if not dist.is_available() or not dist.is_initialized():
        return stats
    reduced: list[Tensor] = []
    for field in stats:
        if field.requires_grad:
            reduced.append(differentiable.all_reduce(field, group=group or dist.group.WORLD))
        else:
            total = field.clone()
            dist.all_reduce(total, group=group)
            reduced.append(total)
    return RouterStats(*reduced)
