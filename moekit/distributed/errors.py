"""What an exchange raises when another rank does not take part."""

from collections.abc import Generator
from contextlib import contextmanager

import torch.distributed as dist


class ExchangeError(RuntimeError):
    """An exchange of rows, counts or gradients did not complete: another rank stopped, stalled, or sent another number.

    The error of ``torch.distributed`` is its cause. The process group is of no further use: leave the process, so that
    a launcher such as ``torchrun`` starts all ranks again.
    """


@contextmanager
def exchange_errors(group: dist.ProcessGroup | None) -> Generator[None]:
    """Raises :class:`ExchangeError` in place of the errors of a collective of ``group``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        raise ExchangeError(
            f"rank {dist.get_rank()} could not complete an exchange among the ranks {ranks}: one of them stopped, "
            "stalled for longer than the timeout of the process group, or raised an error of its own. See their logs. "
            f"{type(error).__name__}: {error}"
        ) from error
