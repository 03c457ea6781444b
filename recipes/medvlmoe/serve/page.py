"""The page: choose an example or upload an image, edit the text, and see what the model makes of both."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.images.read import ImageLimits
from recipes.medvlmoe.serve.predictor import MAX_CHARACTERS, TEMPLATES, Predictor, read_run_examples
from recipes.medvlmoe.serve.uploads import take_upload
from recipes.shared.extras import require
from recipes.shared.report.facts import data_name
from recipes.shared.report.pages import environment
from recipes.shared.runs import read_metrics

MAX_AGE = 600
"""Seconds after which a file is removed that was uploaded and not read."""
SESSION = 3600
"""Seconds for which an image of a browser is kept in memory."""


def style() -> str:
    """Returns the styles of the page's own parts."""
    return environment(TEMPLATES).get_template("serve.css").render()


def build_page(predictor: Predictor, limits: ImageLimits) -> Any:
    """Returns the page as gradio's ``Blocks``.

    Args:
        predictor: Answers for an image and a text.
        limits: Of uploaded images.
    """
    gr = require("gradio", "the page", extra="serve")
    trained = predictor.trained
    examples = read_run_examples(trained.folder)
    names = [f"{number}: {example.name}" for number, example in enumerate(examples, 1)]

    def take(file: str | None) -> tuple[NDArray[np.uint8] | None, None, str]:
        if file is None:
            return None, None, predictor.answer(None, None)
        try:
            image = take_upload(Path(file), predictor.size, force_dicom=trained.config.data.force_dicom, limits=limits)
        except ValueError as error:
            return None, None, predictor.message(f"The upload cannot be read: {error}.")
        return image, None, predictor.message("Read; predicting …")

    def choose(name: str | None) -> tuple[NDArray[np.uint8] | None, str, None]:
        if name not in names:
            return None, "", None
        example = examples[names.index(name)]
        return example.image, example.text, None

    def predict(image: NDArray[np.uint8] | None, text: str | None) -> str:
        return predictor.answer(image, text)

    def predict_if_read(image: NDArray[np.uint8] | None, text: str | None, shown: str) -> str:
        return shown if image is None else predictor.answer(image, text)

    title = f"MedVLMoE: {trained.folder.resolve().name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, MAX_AGE)) as page:
        gr.HTML(_about(predictor))
        image = gr.State(None, time_to_live=SESSION)
        with gr.Row():
            with gr.Column(scale=2):
                example = gr.Dropdown(
                    names, value=None, label="Example of the test split", visible=bool(names), elem_id="example"
                )
                file = gr.File(label="Or upload an image (PNG, JPEG, TIFF, DICOM)", elem_id="upload", height=180)
                # gradio's own would leave an empty file behind each time.
                file.preprocess = lambda payload: None if payload is None else payload.path
                text = gr.Textbox(
                    label="Report or note", lines=6, max_length=MAX_CHARACTERS, visible=trained.reads_text,
                    elem_id="text",
                )  # fmt: skip
                button = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=3):
                shown = gr.HTML(predictor.answer(None, None), elem_id="shown")
        example.input(choose, example, [image, text, file], api_name="choose").then(
            predict, [image, text], shown, api_name=False
        )
        file.upload(take, file, [image, example, shown], api_name="take").then(
            predict_if_read, [image, text, shown], shown, api_name=False
        )
        gr.on([button.click, text.submit], predict, [image, text], shown, api_name="predict")
    # One prediction at a time; who comes when many wait is told so.
    return page.queue(max_size=16, default_concurrency_limit=1)


def _about(predictor: Predictor) -> str:
    trained = predictor.trained
    about = read_metrics(trained.folder).get("run") or {"data": trained.config.data.data}
    return (
        environment(TEMPLATES)
        .get_template("about.html.j2")
        .render(
            name=trained.folder.resolve().name,
            data=data_name(about),
            task=trained.task,
            reads_text=trained.reads_text,
            uncalibrated=trained.why_uncalibrated,
        )
    )
