"""CUDA graphs of a layer: the launches of a step are replayed, and Python takes no part in them.

Everything that decides which expert computes what stays on the GPU, so a graph replays right on any tokens and any
routing of the same shape.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree


def graphed(module: nn.Module, *sample: Tensor, num_warmup: int = 3, **keywords: Tensor) -> nn.Module:
    """Captures forward and backward of a layer in CUDA graphs, by ``torch.cuda.make_graphed_callables``.

    The result is called like the module and returns the same type (a :class:`~moekit.MoEOutput` of a layer), with
    gradients. It has the parameters of the module, which stays usable as it is. In another mode (``train``,
    ``eval``) than at capture the module runs without a graph.

    What a graph fixes:

    - shapes, dtypes and device of all inputs, and which of them get a gradient: as in ``sample``;
    - every output lies where the next call writes its own: clone what is kept longer. Gradients of the parameters may
      be accumulated over several calls;
    - settings of the module (capacity factor, ``recompute``), and which parameters require gradients, are those at
      capture; values of parameters and buffers are not fixed.

    Args:
        module: A layer, or any module whose output is made of tensors, named tuples and constants. Neither it nor its
            parts may read values on the host. It may have no hooks of its own.
        sample: Its positional inputs.
        num_warmup: Calls before capture, which compile the kernels.
        keywords: Its other inputs, such as ``mask``.

    Raises:
        ValueError: If no sample is given, or one is no tensor on a GPU.

    Example:
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> layer, tokens = SparseMoE.ffn(64, 128, num_experts=8, top_k=2, device=device), torch.randn(32, 64)
        >>> if device == "cuda":
        ...     layer = graphed(layer, tokens.cuda())
        >>> layer(tokens.to(device)).output.shape
        torch.Size([32, 64])
    """
    inputs = {**{str(place): each for place, each in enumerate(sample)}, **keywords}
    if not inputs:
        raise ValueError("sample must be the inputs of the module, got none.")
    for name, each in inputs.items():
        if not isinstance(each, Tensor) or each.device.type != "cuda":  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"on {each.device}" if isinstance(each, Tensor) else f"a {type(each).__name__}"  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"sample {name} must be a tensor on a GPU, where graphs are captured, got {what}.")
    return _Graphed(module, inputs, len(sample), num_warmup)


class _Tensors(nn.Module):
    """Calls a module, and returns the tensors of its output; keeps what else there is."""

    def __init__(self, module: nn.Module, num_positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.num_positional = num_positional
        self.names = names
        self.constants: list[Any] = []
        self.spec: Any = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        n = self.num_positional
        output = self.module(*inputs[:n], **dict(zip(self.names, inputs[n:], strict=True)))
        leaves, self.spec = _pytree.tree_flatten(output)
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def output_of(self, tensors: tuple[Tensor, ...]) -> Any:
        """Returns the module's output, made of its tensors."""
        remaining = iter(tensors)
        leaves = [next(remaining) if constant is None else constant[0] for constant in self.constants]
        return _pytree.tree_unflatten(leaves, self.spec)


class _Graphed(nn.Module):
    """What :func:`graphed` returns."""

    def __init__(self, module: nn.Module, sample: dict[str, Tensor], num_positional: int, num_warmup: int) -> None:
        super().__init__()
        self.train(module.training)
        self._sample = {
            name: (each.shape, each.dtype, each.device, each.requires_grad) for name, each in sample.items()
        }
        self._num_positional = num_positional
        tensors = _Tensors(module, num_positional, tuple(sample)[num_positional:])
        tensors.train(module.training)
        inputs = tuple(sample.values())
        make: Any = functools.partial(torch.cuda.make_graphed_callables, num_warmup_iters=num_warmup)
        self.tensors: _Tensors = make(tensors, inputs, allow_unused_input=True)
        self._addresses = self._static_gradients(inputs)

    def forward(self, *inputs: Tensor, **keywords: Tensor) -> Any:
        """Replays the graph on other data."""
        given = (*inputs, *self._by_name(inputs, keywords))
        for each, (name, expected) in zip(given, self._sample.items(), strict=True):
            self._check(name, each, *expected)
        if torch.is_grad_enabled():
            self._keep_gradients()
        return self.tensors.output_of(self.tensors(*given))

    def _by_name(self, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> list[Tensor]:
        names = list(self._sample)[self._num_positional :]
        if len(inputs) != self._num_positional or sorted(keywords) != sorted(names):
            raise ValueError(
                f"inputs must be those of the sample, {self._num_positional} by position and {names} by name, "
                f"got {len(inputs)} and {list(keywords)}."
            )
        return [keywords[name] for name in names]

    @staticmethod
    def _check(
        name: str, each: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device, has_gradient: bool
    ) -> None:
        if (each.shape, each.dtype, each.device) != (shape, dtype, device):
            raise ValueError(
                f"input {name} must be as in the sample, {tuple(shape)} of {dtype} on {device}, got "
                f"{tuple(each.shape)} of {each.dtype} on {each.device}: capture one graph for each shape."
            )
        if each.requires_grad and not has_gradient and torch.is_grad_enabled():
            raise ValueError(
                f"input {name} requires a gradient, which the graph does not compute: give a sample that requires one."
            )

    def _static_gradients(self, inputs: tuple[Tensor, ...]) -> set[int]:
        """Returns where the graph writes the gradients of the parameters."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        outputs = [output for output in self.tensors(*inputs) if output.requires_grad]
        if not parameters or not outputs:
            return set()
        ones = [torch.zeros_like(output) for output in outputs]
        # torch's types leave out that an unused parameter has None.
        gradients = cast(Sequence[Tensor | None], torch.autograd.grad(outputs, parameters, ones, allow_unused=True))
        return {gradient.data_ptr() for gradient in gradients if gradient is not None}

    def _keep_gradients(self) -> None:
        """Moves gradients of the last call away from where the next one writes its own."""
        for parameter in self.parameters():
            gradient = parameter.grad
            if gradient is not None and gradient.data_ptr() in self._addresses:
                parameter.grad = gradient.clone()
