"""Three ways to count the operations of a forward pass, each the one behind some published figure.

| convention | multiply-adds of |
|---|---|
| ``products`` | every matrix product and convolution, whoever calls it (``torch.utils.flop_counter``, halved) |
| ``fvcore`` | what fvcore knows of the traced graph: most of these, and norms and pooling besides |
| ``modules`` | convolutions and linear layers called as modules, as thop does (which adds some norms and pooling) |

``modules`` sees nothing of the products of queries, keys and values, and nothing at all of ``nn.MultiheadAttention``,
which multiplies by the weights of its linear layers without calling them: a ViT that is written with it seems to need a
third less than the same ViT of timm.
"""

import copy
import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes.shared.extras import require

Convention = Literal["products", "fvcore", "modules"]


class Macs(NamedTuple):
    """Multiply-adds of one forward pass by each convention."""

    products: int
    fvcore: int
    modules: int


def count_macs(module: nn.Module, images: Tensor) -> Macs:
    """Counts by all three conventions.

    Args:
        module: In eval mode; it may lie on the meta device, without weights.
        images: What it is called with.

    Returns:
        The counts. fvcore traces numbers, so it gets a copy full of zeros where there are none.

    Raises:
        ImportError: If fvcore is not installed.
    """
    counted = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        if isinstance(layer, nn.Linear):
            counted += output.numel() * layer.in_features
        elif isinstance(layer, nn.Conv2d):
            counted += output.numel() * layer.weight[0].numel()

    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        # The counter does not know the CPU's fused attention.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return Macs(counter.get_total_flops() // 2, _fvcore(module, images), counted)


def _fvcore(module: nn.Module, images: Tensor) -> int:
    if any(parameter.is_meta for parameter in module.parameters()):
        module = copy.deepcopy(module).to_empty(device="cpu")
        with torch.no_grad():
            for value in (*module.parameters(), *module.buffers()):
                value.zero_()
        images = torch.zeros(images.shape, device="cpu")
    with warnings.catch_warnings():
        # fvcore uses torch.jit, which recent versions of torch call deprecated.
        warnings.simplefilter("ignore")
        analysis = require("fvcore.nn", "counting operations").FlopCountAnalysis(module, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(analysis.total())
