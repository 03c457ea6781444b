"""What of a model's encoders is trained, by the settings of its architecture."""

from recipes.medvlmoe.config import ModelConfig
from recipes.shared.encoders.image import ImageEncoder
from recipes.shared.encoders.text import TextEncoder
from recipes.shared.encoders.tuning import set_tuning


def tune_encoders(config: ModelConfig, image_encoder: ImageEncoder, text_encoder: TextEncoder | None) -> None:
    """Freezes encoders or adds adapters, where the settings say so.

    Args:
        config: The architecture.
        image_encoder: With its weights.
        text_encoder: With its weights; ``None`` without one.
    """
    rank, alpha = config.lora_rank, config.lora_alpha
    set_tuning(image_encoder.model, config.image_tuning, "--image-tuning", rank=rank, alpha=alpha)
    if text_encoder is not None:
        set_tuning(text_encoder.model, config.text_tuning, "--text-tuning", rank=rank, alpha=alpha)
