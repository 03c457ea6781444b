"""A sigmoid gate on fused features.

Shape letters: D sum of the modalities' widths, G gates: D of them, or one for each modality.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_choice, check_fits_layer, check_positive, check_width
from moekit.init import layer_in, reset_parameters
from moekit.settings import SettingsModule


class GateOutput(NamedTuple):
    """Result of `ModalityGate`."""

    output: Float[Tensor, "... D"]
    """The gated features."""
    gate: Float[Tensor, "... G"]
    """The gate itself, in (0, 1)."""


class ModalityGate(SettingsModule):
    """Weights concatenated features by a sigmoid gate computed from all of them.

        G(F) = sigmoid(W_g F + b),    output = F * G(F)

    The gate starts at one constant, ``initial_gate``, whatever the input: W_g starts at zero and b at the
    constant's logit. At 0.5, the default and the value of a gate without bias, the sigmoid has its largest gradient;
    near 1 the layer starts close to the identity. Whatever stands in ``projection`` is called, so a wrapper (LoRA,
    activation checkpointing, FSDP) may replace it.

    Args:
        widths: Widths of the concatenated modalities in order, e.g. ``(512, 512)``; D is their sum.
        per: ``"feature"`` for D gates, one for each feature; ``"modality"`` for one gate per modality.
        bias: Whether to add b.
        initial_gate: Value of every gate at the start, in (0, 1).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``widths`` is empty or holds a width below 1, ``per`` is neither value,
            ``initial_gate`` lies outside (0, 1), or is not 0.5 while ``bias`` is False.

    Reference:
        MedVLMoE, section 3.3: G(F) = σ(W_g F), without stating what the gate multiplies or how many values
        it has. Here it multiplies F; D values by default, one per modality as an option. Deviations: the
        bias, which ``bias=False`` removes, and the start at a constant.

    Example:
        >>> gate = ModalityGate((4, 2), per="modality")
        >>> gated = gate(torch.ones(3, 6))
        >>> gated.output[0].tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
        >>> gated.gate.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        per: Literal["feature", "modality"] = "feature",
        bias: bool = True,
        initial_gate: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.per = per
        self.initial_gate = initial_gate
        if not self.widths:
            raise ValueError("widths must name at least one modality's width, got none.")
        for index, width in enumerate(self.widths):
            check_positive(f"widths[{index}]", width)
        check_choice("per", per, ("feature", "modality"))
        if not 0.0 < initial_gate < 1.0:
            raise ValueError(f"initial_gate must lie in (0, 1), got {initial_gate}.")
        if not bias and initial_gate != 0.5:
            raise ValueError(f"initial_gate must be 0.5 with bias=False, got {initial_gate}; pass bias=True.")
        dim = sum(self.widths)
        num_gates = dim if per == "feature" else len(self.widths)
        self.projection = nn.Linear(dim, num_gates, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()
        self._make_read_only("widths", "per")

    def reset_parameters(self) -> None:
        """Resets every gate to ``initial_gate``."""
        linear = layer_in(self.projection, nn.Linear)
        if linear is None:
            reset_parameters(self.projection)
            return
        nn.init.zeros_(linear.weight)
        # torch's stubs declare a bias in every layer.
        if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.constant_(linear.bias, math.log(self.initial_gate / (1.0 - self.initial_gate)))

    def forward(self, features: Float[Tensor, "... D"]) -> GateOutput:
        """Gates the features.

        Args:
            features: Concatenated features of the modalities, shape (..., D).

        Returns:
            The gated features, shape (..., D), and the gate, shape (..., D) or (..., number of modalities).

        Raises:
            ValueError: If the width, dtype or device of ``features`` does not fit.
        """
        check_width("features", features, sum(self.widths))
        check_fits_layer("features", features, self.projection)
        gate = torch.sigmoid(self.projection(features))
        if self.per == "feature":
            return GateOutput(features * gate, gate)
        parts: tuple[Tensor, ...] = torch.split(features, list(self.widths), dim=-1)
        weighted = [part * gate[..., i : i + 1] for i, part in enumerate(parts)]
        return GateOutput(torch.cat(weighted, dim=-1), gate)

    def extra_repr(self) -> str:
        """Shows the widths and the options."""
        return f"widths={self.widths}, per={self.per!r}, initial_gate={self.initial_gate}"
