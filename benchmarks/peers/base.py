"""What a peer is: a name, whether it can run here, and how to build it from a workload."""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from benchmarks.workload import Workload

Role = Literal["experts", "ceiling", "whole layer"]


def as_they_are(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns gradients unchanged: the leaves have the names and the layout of the workload."""
    return gradients


class Layer(NamedTuple):
    """A layer that is ready to run.

    Attributes:
        forward: ``(T, D) -> (T, D)``.
        leaves: Tensors besides ``x`` that get gradients, by name.
        canonical: Converts gradients of the leaves to those of the workload's ``gates``, ``up`` and ``down``; what
            it leaves out is not compared.
    """

    forward: Callable[[Tensor], Tensor]
    leaves: Mapping[str, Tensor]
    canonical: Callable[[dict[str, Tensor]], dict[str, Tensor]] = as_they_are


class Peer(ABC):
    """One way to compute a layer.

    Attributes:
        name: As the command line and the records call it.
        remark: What it is, for the table.
        role: ``"experts"`` computes the workload's function of its weights and routing; ``"ceiling"`` is a dense
            network of as many operations; a ``"whole layer"`` has weights, routing or activation of its own.
        graphs: Whether it can be captured in a CUDA graph: it reads nothing on the host.
    """

    name: str
    remark: str
    role: Role = "experts"
    graphs: bool = True

    @abstractmethod
    def absent(self, workload: Workload) -> str | None:
        """Returns why it cannot run ``workload`` here; None if it can."""

    @abstractmethod
    def build(self, workload: Workload) -> Layer:
        """Returns the layer with the workload's weights and routing, as far as its role has them."""


def leaf(tensor: Tensor) -> Tensor:
    """Returns a leaf that shares the values of ``tensor`` and gets a gradient."""
    return tensor.detach().requires_grad_()


def not_importable(module: str, package: str) -> str | None:
    """Returns why ``module`` cannot be imported; None if it can."""
    try:
        with warnings.catch_warnings():  # of other libraries, while they are loaded
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            return f"{package} is not installed"
        return f"{package} cannot be imported: {error}"
    except Exception as error:  # where a GPU or a toolkit is missing, libraries raise errors of many kinds
        return f"{package} cannot be imported: {type(error).__name__}: {first_line(error)}"
    return None


def needs_gpu(workload: Workload, package: str) -> str | None:
    """Returns a reason on every device but a GPU."""
    return None if workload.x.is_cuda else f"{package} runs on a GPU only"


def needs_16_bit(workload: Workload, package: str) -> str | None:
    """Returns a reason for every dtype but bfloat16 and float16."""
    return None if workload.x.itemsize == 2 else f"{package} takes 16-bit tensors only"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
