"""Compares a layer with the MLP that it is made of, on random tokens."""

import torch
from torch import Tensor, nn

from moekit.interop.upcycling.layer import UpcycledMLP
from moekit.interop.upcycling.parts import refuse
from moekit_kernels.autocast import no_autocast

TOKENS = 8
TOLERANCE = 1e-5
# Products in TF32 and half precision round by more; so many of their roundings may differ.
_ROUNDINGS = 8
_EPS_TF32 = 2.0**-10


def check_same_function(name: str, mlp: nn.Module, layer: UpcycledMLP, *, exact: bool) -> None:
    """Checks that a layer gives the output of its MLP in evaluation mode; nothing on the meta device.

    Args:
        name: Name of the MLP in its model.
        mlp: The MLP.
        layer: The layer.
        exact: Whether it should give the same; else only shape, dtype and that all numbers are finite are checked.

    Raises:
        ValueError: If it does not.
    """
    weight = layer.moe.experts.up_proj
    assert isinstance(weight, Tensor)
    if weight.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, TOKENS, weight.shape[-1], generator=generator, device="cpu").to(weight)
    with torch.inference_mode(False), torch.no_grad(), no_autocast(weight.device.type):
        theirs, mine = _in_evaluation(mlp, x), _in_evaluation(layer, x)
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        what = f"gives {theirs.dtype} {tuple(theirs.shape)} where experts give {mine.dtype} {tuple(mine.shape)}"
        refuse(name, mlp, what)
    if not exact:
        if bool(theirs.isfinite().all()) and not bool(mine.isfinite().all()):
            refuse(name, mlp, "would become a layer whose output is not finite", "Look at what method returns.")
        return
    difference = (mine.double() - theirs.double()).abs().max().item()
    largest = theirs.double().abs().max().item()
    if not difference <= _tolerance(weight) * max(largest, 1e-6):
        refuse(
            name,
            mlp,
            f"would become a layer that computes something else: outputs of up to {largest:.2g} differ by "
            f"{difference:.2g}",
            "Its weights may not be finite, or of magnitudes that its dtype cannot add up.",
        )


def _in_evaluation(module: nn.Module, x: Tensor) -> Tensor:
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        return module(x)
    finally:
        for each, training in modes.items():
            each.training = training


def _tolerance(weight: Tensor) -> float:
    eps = torch.finfo(weight.dtype).eps
    if weight.dtype == torch.float32 and weight.device.type != "cpu":
        eps = _EPS_TF32
    return max(TOLERANCE, _ROUNDINGS * eps) if eps > TOLERANCE else TOLERANCE
