"""Settings of a contrastive stage, which the presets of the baselines set."""

from dataclasses import dataclass
from typing import Literal

Objective = Literal["none", "convirt", "gloria", "biovil", "clip", "medclip"]


@dataclass(frozen=True)
class ContrastConfig:
    """Contrast of the training split's images and texts, before the classifier is trained (or instead of it)."""

    objective: Objective = "none"
    """The loss of this method; none leaves the stage out."""
    projection: Literal["linear", "mlp"] = "linear"
    """What maps the encoders' features into the common space: one matrix, or two with a ReLU."""
    temperature: float = 0.07
    """Divides the cosines of images and texts; not of gloria, which has the third of --local-temperatures."""
    learn_temperature: bool = False
    """Whether the temperature is trained, from that value on (clip, medclip)."""
    image_to_text_weight: float = 0.5
    """Weight λ of the direction from image to text, and 1-λ of the other one (convirt)."""
    local_weight: float = 1.0
    """Coefficient of the contrast of words and regions (gloria, biovil)."""
    local_temperatures: tuple[float, float, float] = (4.0, 5.0, 10.0)
    """GLoRIA's three, which multiply: attention over regions, words of a text, scores (gloria, biovil)."""
    word_softmax: bool = True
    """Whether the words of a text compete for a region, as in GLoRIA's code; its paper prints regions alone."""
    masked_weight: float = 0.1
    """Coefficient of the prediction of masked words (biovil)."""
    text_layers: tuple[int, ...] = (-1,)
    """Layers of the text encoder whose mean is read; -1 is the last one, 0 the embeddings."""
    frozen_text_layers: int = 0
    """How many of the text encoder's first layers, and its embeddings, stay as they are; 0 trains all."""
    prompt: str = "a medical image of {}"
    """Text made of class names: of training studies where the data hold no texts, and of zero-shot classes."""
    absent: str = "no {}"
    """How such a text names a finding that is absent."""


def has_contrastive_stage(classifier: str, contrast: ContrastConfig) -> bool:
    """Tells whether a run trains its encoders by contrast first, and a classifier on them then."""
    return contrast.objective != "none" and not trains_on_pairs(classifier)


def trains_on_pairs(classifier: str) -> bool:
    """Tells whether a run's own epochs are of contrast: what is trained has no classifier of its own."""
    return classifier in ("zero-shot", "none")
