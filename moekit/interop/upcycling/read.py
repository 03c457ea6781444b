"""Reads an MLP: finds the one reading of its parts that gives its numbers.

Names tell little, so a small copy of the module, with random weights in float64, is run in both modes and compared with
all ways in which its parts can be put together. Dropouts are replaced by factors that differ by column, so the copy
also tells where they stand.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.experts.activation import ActivationLike, ActivationName
from moekit.interop.upcycling.mlp import PACKINGS, MLPLayout, has_bias, is_conv1d, linear_shape
from moekit.interop.upcycling.parts import FUSED, MLPParts, parts_of, refuse
from moekit_kernels.activations import glu
from moekit_kernels.activations.activation import activate

DIM, HIDDEN, OUT = 6, 4, 5
MAX_DROPOUTS = 3
# Some modules compute an activation in float32.
_TOLERANCE = 1e-6
_GATED: dict[str, ActivationName] = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}


def read_mlp(name: str, module: nn.Module) -> MLPLayout:
    """Reads an MLP.

    Args:
        name: Its name in the model, for messages.
        module: The MLP.

    Raises:
        ValueError: If it is not understood whole; the message names it and what is not.
    """
    parts = parts_of(name, module)
    if len(parts.linears) not in (2, 3):
        what = ", ".join(parts.linears) or "none"
        refuse(
            name,
            module,
            f"has {len(parts.linears)} linear layers ({what}) where an MLP has two, or three with a gate",
            "Name the module whose output is that of the whole MLP.",
        )
    if len(parts.activations) > 1 or len(parts.dropouts) > MAX_DROPOUTS:
        what = f"{', '.join([*parts.activations, *parts.dropouts])}"
        refuse(name, module, f"has more than one activation or more than {MAX_DROPOUTS} dropouts: {what}")
    reasons, failures = list[str](), list[str]()
    for roles in _roles(parts):
        small = _small_copy(name, module, parts, roles)
        try:
            outputs = {training: _output(small.train(training)) for training in (False, True)}
        except Exception as error:  # of any kind: the module is not made for these roles
            failures.append(f"fails on tokens (B, S, D) with a {type(error).__name__}: {error}".splitlines()[0])
            continue
        for layout in _layouts(parts, roles):
            if all(_same(output, _expected(small, layout, training)) for training, output in outputs.items()):
                _check_layout(name, module, parts, layout)
                return layout
        reasons.append(_why_not(parts, roles))
    refuse(name, module, [*reasons, *failures, f"has linear layers whose widths do not fit: {_shapes(parts)}"][0])


def _roles(parts: MLPParts) -> Iterator[MLPLayout]:
    """Yields which linear layer may be which, by their shapes; in the order of the module first."""
    shapes = {path: linear_shape(layer) for path, layer in parts.linears.items()}
    for order in itertools.permutations(shapes):
        *first, down = order
        widths = {shapes[each] for each in first}
        if len(widths) > 1:
            continue
        ((_, rows),) = widths
        hidden = shapes[down][0]
        if len(first) == 2 and rows == hidden:
            yield MLPLayout(first[1], down, gate=first[0])
        elif len(first) == 1 and rows == hidden:
            yield MLPLayout(first[0], down)
        elif len(first) == 1 and rows == 2 * hidden:
            yield MLPLayout(first[0], down, packing="gate_first")


def _layouts(parts: MLPParts, roles: MLPLayout) -> Iterator[MLPLayout]:
    """Yields all ways to put the parts together."""
    activations: list[ActivationLike] = list(parts.activations.values()) or list(FUSED)
    packings = (None,) if roles.packing is None else PACKINGS
    for activation, packing in itertools.product(activations, packings):
        activation = _gated(activation) if roles.gated else activation
        if activation is None:
            continue
        for places in itertools.product(("hidden", "output", "unused"), repeat=len(parts.dropouts)):
            at = list(zip(parts.dropouts, places, strict=True))
            yield replace(
                roles,
                packing=packing,
                activation=activation,
                hidden_dropouts=tuple(path for path, place in at if place == "hidden"),
                output_dropouts=tuple(path for path, place in at if place == "output"),
            )


def _gated(activation: ActivationLike) -> ActivationLike | None:
    if isinstance(activation, str):
        return _GATED.get(activation) or glu(activation)
    return None


def _why_not(parts: MLPParts, roles: MLPLayout) -> str:
    if roles.gate is not None and has_bias(parts.linears[roles.gate]) != has_bias(parts.linears[roles.up]):
        return f"has a bias in only one of {roles.gate} and {roles.up}, which become one weight"
    for path, activation in parts.activations.items():
        if roles.gated and _gated(activation) is None:
            return f"has a gate with {path}, a {type(activation).__name__}, for which experts have no gated form"
    return "computes something else than linear layers with an activation and dropouts between"


def _check_layout(name: str, module: nn.Module, parts: MLPParts, layout: MLPLayout) -> None:
    if layout.gate is not None:
        gate, up = parts.linears[layout.gate], parts.linears[layout.up]
        for mine, its in zip(gate.parameters(), up.parameters(), strict=True):
            if mine.requires_grad != its.requires_grad:
                refuse(
                    name,
                    module,
                    f"has only one of {layout.gate} and {layout.up} frozen, which become one weight",
                    "Freeze both or neither.",
                )
    dropped = [path for path in layout.hidden_dropouts if parts.dropouts[path].p > 0]
    if dropped and layout.gated:
        refuse(
            name,
            module,
            f"has a dropout in its hidden layer, {', '.join(dropped)}, which gated experts have not",
            "Set its p to 0.",
        )


class _ByColumn(nn.Module):
    """Stands for a dropout: in training multiplies each column by a factor of its own."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        return x * (1 + self.slope * columns) if self.training else x


def _small_copy(name: str, module: nn.Module, parts: MLPParts, roles: MLPLayout) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    in_features, out_features = linear_shape(parts.linears[roles.up])[0], linear_shape(parts.linears[roles.down])[1]
    rows = HIDDEN if roles.packing is None else 2 * HIDDEN
    widths: dict[str, tuple[int, int]] = dict.fromkeys(parts.linears, (DIM, rows))
    widths[roles.down] = (HIDDEN, DIM if in_features == out_features else OUT)
    replaced: dict[int, object] = {}
    for path, layer in parts.linears.items():
        replaced[id(layer)] = _small_linear(layer, *widths[path], generator)
    for place, layer in enumerate(parts.dropouts.values(), start=1):
        replaced[id(layer)] = _ByColumn(place / 7)
    try:
        # deepcopy takes what its memo holds in place of a copy.
        return copy.deepcopy(module, replaced)
    except Exception as error:
        refuse(name, module, f"cannot be copied: {error}")


def _small_linear(layer: nn.Module, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
    shape = (in_features, out_features) if is_conv1d(layer) else (out_features, in_features)
    # Built without drawing from the default generators.
    small = nn.Linear(1, 1, bias=has_bias(layer), device="meta")
    if is_conv1d(layer):
        small = copy.copy(layer)
        small.__dict__["_parameters"] = {}
        small.__dict__.update(nf=out_features, nx=in_features)
    else:
        small.in_features, small.out_features = in_features, out_features

    def random(*size: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*size, generator=generator, dtype=torch.float64, device="cpu"))

    small.register_parameter("weight", random(*shape))
    small.register_parameter("bias", random(out_features) if has_bias(layer) else None)
    return small


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, DIM, generator=generator, dtype=torch.float64, device="cpu")


@torch.inference_mode(False)
@torch.no_grad()
def _output(small: nn.Module) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        output: object = small(_tokens())
    if not isinstance(output, Tensor):
        raise TypeError(f"its output is a {type(output).__name__}, not one tensor")
    return output


@torch.inference_mode(False)
@torch.no_grad()
def _expected(small: nn.Module, layout: MLPLayout, training: bool) -> Tensor:
    weights = layout.read(small)
    hidden = activate(layout.activation, F.linear(_tokens(), weights.up, weights.up_bias))
    for path in layout.hidden_dropouts if training else ():
        hidden = small.get_submodule(path)(hidden)
    output = F.linear(hidden, weights.down, weights.down_bias)
    for path in layout.output_dropouts if training else ():
        output = small.get_submodule(path)(output)
    return output


def _same(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape:
        return False
    return bool((output - expected).abs().max() <= _TOLERANCE * (1 + expected.abs().max()))


def _shapes(parts: MLPParts) -> str:
    shapes = {path: linear_shape(layer) for path, layer in parts.linears.items()}
    return ", ".join(f"{path} {inner} to {outer}" for path, (inner, outer) in shapes.items())
