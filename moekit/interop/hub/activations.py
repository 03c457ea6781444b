"""Activations in files: by their name, which of those with parameters holds the parameters."""

import re
from typing import Any

from moekit_kernels.activations import Activation, clamped_swiglu, glu, situ, situ_glu
from moekit_kernels.activations.activation import ACTIVATIONS

_NUMBER = re.compile(r"(\w+)=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_FAMILY = re.compile(r"(clamped_swiglu|situ_glu|situ)(_interleaved)?\(([^()]*)\)")
_GLU = re.compile(r"glu\((.+)\)(_interleaved)?")


def encode_activation(activation: Activation) -> dict[str, Any]:
    """Returns an activation as json."""
    return {"activation": activation.name, "gated": activation.gated, "interleaved": activation.interleaved}


def decode_activation(encoded: dict[str, Any]) -> Activation:
    """Returns the activation of a file: one of this process, or one of the package made again.

    Raises:
        ValueError: If there is none of that name, or it is another one.
    """
    name = encoded["activation"]
    activation = _activation(name) if isinstance(name, str) else None
    if activation is None:
        raise ValueError(
            f"the activation {name!r} does not exist in this process: make it, as moekit.activations.Activation("
            f"{name!r}, ...), before loading."
        )
    for field in ("gated", "interleaved"):
        if getattr(activation, field) != encoded.get(field):
            raise ValueError(
                f"the activation {name!r} was saved with {field}={encoded.get(field)!r}, but that of this process has "
                f"{field}={getattr(activation, field)!r}: give one of them another name."
            )
    return activation


def _activation(name: str) -> Activation | None:
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    made: Activation | None = None
    if match := _FAMILY.fullmatch(name):
        family, interleaved = match[1], match[2] is not None
        parameters = {key: float(value) for key, value in _NUMBER.findall(match[3])}
        try:
            if family == "situ":
                made = situ(**parameters)
            elif family == "clamped_swiglu":
                made = clamped_swiglu(**parameters, interleaved=interleaved)
            else:
                made = situ_glu(**parameters, interleaved=interleaved)
        except TypeError:  # other parameters
            return None
    elif match := _GLU.fullmatch(name):
        scalar = _activation(match[1])
        if scalar is not None and not scalar.gated:
            made = glu(scalar, interleaved=match[2] is not None)
    return made if made is not None and made.name == name else None
