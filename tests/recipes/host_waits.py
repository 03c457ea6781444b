"""Which operations would make the host wait for the device."""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
}
"""Operations whose result, or its shape, the host reads: ``item``, conditions, boolean indexing, ..."""


class HostWaits(TorchDispatchMode):
    """Records calls of operations that would make the host wait, if the tensors were on a GPU."""

    def __init__(self):
        super().__init__()
        self.names, self.counting = [], True
        self._patches = ExitStack()

    def __enter__(self):
        # On the CPU these are no operations.
        for name in ("tolist", "cpu", "numpy"):
            self._patches.enter_context(patch.object(torch.Tensor, name, self._noticed(name)))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patches.close()

    def _noticed(self, name):
        original = getattr(torch.Tensor, name)

        def call(tensor, *args, **kwargs):
            if self.counting:
                self.names.append(name)
            return original(tensor, *args, **kwargs)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "moekit":  # an implementation per device: what the CPU's reads, the GPU's does not
            with self.paused():
                return func(*args, **(kwargs or {}))
        if self.counting and func.overloadpacket in WAITING:
            self.names.append(func.overloadpacket.__name__)
        # A boolean index is looked up by its nonzero places, in C++ and unseen.
        if self.counting and func.overloadpacket is aten.index and any(_is_mask(index) for index in args[1]):
            self.names.append("index by a mask")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self):
        """Does not count what is done inside."""
        self.counting, before = False, self.counting
        try:
            yield
        finally:
            self.counting = before


def _is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)
