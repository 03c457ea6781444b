"""From an image and a text to the answer that the page shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.tables.sections import sections_of
from recipes.medvlmoe.inference import Predictions
from recipes.medvlmoe.report.run import EXAMPLE_KEYS
from recipes.medvlmoe.trained import TrainedRun, images_in_memory
from recipes.shared.report.bars import Bar
from recipes.shared.report.files import read_examples
from recipes.shared.report.images import Frame, attention_overlay, frame
from recipes.shared.report.pages import environment

TEMPLATES = Path(__file__).with_name("templates")
MAX_CHARACTERS = 20_000
"""Longest text that is taken; models read less of it."""
MOST_BARS = 40
"""Classes shown: the most probable, in the order of the classes."""


@dataclass(frozen=True)
class Example:
    """A study that the run's evaluation kept."""

    name: str
    image: NDArray[np.uint8]
    text: str


def read_run_examples(run: Path) -> list[Example]:
    """Returns the example studies of an evaluated run, none without any.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: If their file is damaged.
    """
    arrays = read_examples(run / "examples.npz", EXAMPLE_KEYS)
    if arrays is None:
        return []
    return [
        Example(str(name), image, str(text))
        for name, image, text in zip(arrays["ids"], arrays["images"], arrays["texts"], strict=True)
    ]


class Predictor:
    """Answers for one image and text at a time.

    Args:
        trained: The run.
    """

    def __init__(self, trained: TrainedRun) -> None:
        self.trained = trained
        self._template = environment(TEMPLATES).get_template("answer.html.j2")

    @property
    def size(self) -> int:
        """Side of the square that the image encoder reads."""
        return self.trained.model.image_encoder.spec.size

    def answer(self, image: NDArray[np.uint8] | None, text: str | None) -> str:
        """Returns the answer as HTML.

        Args:
            image: ``uint8``, ``(H, W)`` or ``(H, W, 3)``; ``None`` for none.
            text: Report or note; blank for none.
        """
        clean, notes = self._clean(text)
        if image is None:
            if clean is None:
                return self._render(
                    message=" ".join([*(notes if text else ()), "Choose an example, or upload an image."])
                )
            notes.append("Without an image: the model's stand-in for one is used.")
            if not self.trained.config.train.drop_image:
                notes.append("It was hardly trained (--drop-image 0), so do not rely on this.")
        split = images_in_memory([image], [clean], num_classes=len(self.trained.classes))
        predictions = self.trained.predict(split, need_attention=True)
        calibrated = self.trained.calibrated(predictions)
        return self._render(
            frames=() if image is None else self._frames(image, self.trained.attention_maps(predictions)),
            bars=self._bars(predictions.probs[0] if calibrated is None else calibrated[0]),
            calibrated=calibrated is not None,
            experts=self._experts(predictions),
            top_k=self.trained.config.model.top_k,
            notes=notes,
        )

    def message(self, text: str) -> str:
        """Returns a message, such as what is wrong with an upload, as HTML."""
        return self._render(message=text)

    def _render(self, **content: Any) -> str:
        nothing = {"message": "", "frames": (), "bars": (), "calibrated": False, "experts": (), "top_k": 0, "notes": ()}
        return self._template.render(nothing | content)

    def _clean(self, text: str | None) -> tuple[str | None, list[str]]:
        """Returns the text that the model reads, and what was done to it."""
        if text is None or not text.strip():
            return None, ["Without a text: the model's stand-in for one is used."] * self.trained.reads_text
        if not self.trained.reads_text:
            return None, [f"The run {self.trained.why_no_text}: the text is not read."]
        notes = []
        # Halves of a character's pair cannot be written as UTF-8, which tokenizers need.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        if len(clean) > MAX_CHARACTERS:
            clean = clean[:MAX_CHARACTERS]
            notes.append(f"The text was cut to {MAX_CHARACTERS:,} characters.")
        section = self.trained.config.data.manifest.text_section
        if section is not None:
            try:
                sections_of([clean], section, whole_notes=True)
            except ValueError:
                return None, [*notes, f"The text has headers but no section {section!r}: predicted without a text."]
        return clean, notes

    def _frames(self, image: NDArray[np.uint8], maps: NDArray[np.float32] | None) -> list[Frame]:
        frames = [frame(image, "Image", alt="the image")]
        if maps is not None and np.isfinite(maps[0]).all():
            peak = float(maps[0].max() * maps[0].size / max(maps[0].sum(), 1e-9))
            caption = f"Attention, peak {peak:.1f} × mean patch"
            frames.append(frame(image, caption, alt="attention over the image", overlay=attention_overlay(maps[0])))
        return frames

    def _bars(self, probs: NDArray[np.floating]) -> list[Bar]:
        kept = sorted(np.argsort(-probs, kind="stable")[:MOST_BARS].tolist())
        return [Bar(self.trained.classes[c], float(probs[c]), strong=bool(probs[c] >= 0.5)) for c in kept]

    def _experts(self, predictions: Predictions) -> list[Bar]:
        if predictions.gates is None:
            return []
        chosen, _ = predictions.main_experts(self.trained.config.model.top_k)
        return [
            Bar(f"Expert E{expert}", float(gate), strong=expert in chosen[0])
            for expert, gate in enumerate(predictions.gates[0])
        ]
