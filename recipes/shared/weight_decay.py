"""Which parameters weight decay shrinks: by the role that a parameter has in its module, never by its shape.

What decays are the matrices that features are multiplied by: of linear and convolutional layers, of attention, of
experts. What does not are biases (also those that a bank of experts stacks into one tensor), norms and scales,
embeddings, tokens and positions that are added, attention biases.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from moekit import FFNExperts, SoftMoE

MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Bilinear: ("weight",),
    _ConvNd: ("weight",),
    Conv1D: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    FFNExperts: ("up_proj", "down_proj"),
    SoftMoE: ("phi",),
}
"""Names of the matrices that a module of each type, or of a type derived from it, holds itself."""


def matrix_names(model: nn.Module) -> set[str]:
    """Returns the names, as of ``named_parameters``, of the parameters of a model that are matrices.

    A module of an unknown type that holds parameters itself counts as having none. A parameter that several modules
    share is a matrix if it is one for any of them.
    """
    matrices = {
        id(getattr(module, name))
        for module in model.modules()
        for kind, names in MATRICES.items()
        if isinstance(module, kind)
        for name in names
        if getattr(module, name) is not None
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in matrices}


def parameter_groups(
    model: nn.Module, *, weight_decay: float, rates: Mapping[str, float], part_of: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Groups the parameters that are trained for an optimiser.

    Args:
        model: Its frozen parameters are left out.
        weight_decay: Of the matrices; the weight decay of all others is 0.
        rates: Highest learning rate of each part of the model.
        part_of: Part that a parameter belongs to, by its name.

    Returns:
        One group for each part and role: ``params``, their ``names``, ``part``, ``peak_lr``, ``lr`` (0, for
        :func:`~recipes.shared.steps.set_learning_rates` to set) and ``weight_decay``.
    """
    matrices = matrix_names(model)
    groups: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in matrices), {})[name] = parameter
    return [
        {
            "params": list(group.values()),
            "names": list(group),
            "part": part,
            "peak_lr": rates[part],
            "lr": 0.0,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), group in sorted(groups.items(), key=lambda item: item[0])
    ]
