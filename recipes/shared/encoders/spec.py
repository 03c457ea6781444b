"""What an image encoder is built from, without its weights."""

from dataclasses import asdict, dataclass, field
from typing import Any

TIMM, OPEN_CLIP = "timm", "open_clip"
# Arguments of timm.create_model that make it read files.
_NAME_FILES = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class ImageEncoderSpec:
    """All that is needed to build an encoder again without its weights.

    Attributes:
        architecture: Its name in the library.
        size: Side of the square input, in pixels.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divides them then.
        options: Further arguments of ``timm.create_model``; of open_clip the configuration of its image tower.
        library: What builds it, ``"timm"`` or ``"open_clip"``.
    """

    architecture: str
    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    options: dict[str, Any] = field(default_factory=dict)
    library: str = TIMM

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageEncoderSpec":
        """Builds a spec from what :meth:`to_json` gave.

        Raises:
            ValueError: If it names files or repositories, which a file from elsewhere may do: timm would load them.
        """
        options = values.get("options", {})
        vision = options.get("vision_cfg", {})
        named = [name for name in _NAME_FILES if name in options]
        of_timm = str(vision.get("timm_model_name") or "")
        known = values.get("library", TIMM) in (TIMM, OPEN_CLIP)
        if named or not known or ":" in values["architecture"] or ":" in of_timm:
            shown = f"{values['architecture']!r}{f' with {named}' if named else ''}"
            raise ValueError(
                f"image encoder must be an architecture of timm that is built without files, got {shown}: give the "
                "folder of a model that this recipe saved."
            )
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
