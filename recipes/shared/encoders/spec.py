"""What an image encoder is built from, without its weights."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ImageEncoderSpec:
    """All that is needed to build an encoder again without its weights.

    Attributes:
        architecture: timm's name.
        size: Side of the square input, in pixels.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divides them then.
        options: Further arguments of ``timm.create_model``.
    """

    architecture: str
    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageEncoderSpec":
        """Builds a spec from what :meth:`to_json` gave."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
