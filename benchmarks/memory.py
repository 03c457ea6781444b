"""How much memory a layer takes: what autograd keeps, the allocator's peaks on a GPU, a process's peak on CPU."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Saved(NamedTuple):
    """Bytes that autograd keeps from forward to backward.

    Attributes:
        intermediates: Of tensors that forward made.
        inputs: Of the layer's inputs among what is kept; the caller holds them anyway. Parameters are not counted.
    """

    intermediates: int
    inputs: int


class Peaks(NamedTuple):
    """Bytes on a GPU above what was there before.

    Attributes:
        forward: Peak during forward.
        kept: After forward, the output not counted.
        step: Peak over forward and backward, gradients of the weights included.
    """

    forward: int
    kept: int
    step: int


def saved_for_backward(forward: Callable[[], Tensor], inputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> Saved:
    """Counts the storages that autograd's hooks see during ``forward``, each once."""
    own = {_storage(tensor) for tensor in inputs}
    ignored = {_storage(tensor) for tensor in parameters}
    seen: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and _storage(tensor) not in ignored:
            seen[_storage(tensor)] = tensor.untyped_storage().nbytes()
            kept.append(tensor.detach())
        return tensor.detach()  # a node's own output would keep the node, which keeps its output: never freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    inputs_bytes = sum(size for address, size in seen.items() if address in own)
    return Saved(sum(seen.values()) - inputs_bytes, inputs_bytes)


def peaks(forward: Callable[[], Tensor], backward: Callable[[Tensor], object], device: torch.device) -> Peaks:
    """Returns the allocator's peaks over one step on a GPU."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    output = forward()
    torch.cuda.synchronize(device)
    forward_peak = torch.cuda.max_memory_allocated(device)
    kept = torch.cuda.memory_allocated(device) - output.untyped_storage().nbytes()
    gradients = backward(output)
    torch.cuda.synchronize(device)
    step = torch.cuda.max_memory_allocated(device)
    del gradients, output
    return Peaks(forward_peak - before, kept - before, step - before)


class Transients(TorchDispatchMode):
    """Counts the bytes that tensors made inside it hold at once, on any device, "meta" too.

    Attributes:
        peak: The most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leaves out tensors that exist already, so that views of them count nothing."""
        self._add(tensors, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it made."""
        output = func(*args, **(kwargs or {}))
        self._add((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), counted=True)
        return output

    def _add(self, tensors: Iterable[Tensor], counted: bool) -> None:
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        for tensor in tensors:
            storage = StorageWeakRef(tensor.untyped_storage())
            nbytes = tensor.untyped_storage().nbytes() if counted else 0
            self._alive.setdefault(cast(int, storage.cdata), (storage, nbytes))
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._alive.values()))


def allocated_peak(step: Callable[[], object]) -> int:
    """Returns the most bytes that ``step`` holds at one time of what torch allocates on CPU while it runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    # torch 2.11 warns of cycles, of which there is one, unless events are to be kept.
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        step()
    events = cast(Any, profile.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((nbytes for _, nbytes in changes), initial=0))


def resident_peak(step: Callable[[], object]) -> int:
    """Returns the bytes by which ``step`` raises the resident memory of this process at its peak (Linux).

    Right only where the step needs more than the process ever held at once: call it once, in a new process.
    """
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
