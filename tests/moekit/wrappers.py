"""Modules that call what they hold, to be put in place of it."""

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class Bare(nn.Module):
    """Has nothing but ``forward``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs)


class Misleading(Bare):
    """Has attributes of its own with the names of a part's."""

    num_experts, top_k, input_ndim, token_ndim, takes_pyramid = 1, 0, 0, 3, True


class Hidden(nn.Module):
    """Calls what it keeps outside its submodules, as offloading does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.call = [inner]

    def forward(self, *inputs):
        return self.call[0](*inputs)


WRAPPERS = {
    "bare": Bare,
    "misleading": Misleading,
    "hidden": Hidden,
    "checkpoint": checkpoint_wrapper,
    "twice": lambda module: checkpoint_wrapper(Bare(module)),
}
