"""What is answered to an image, a text, or both."""

import re
from dataclasses import replace

import numpy as np
import pytest

from recipes.medvlmoe import predict
from recipes.medvlmoe.serve.predictor import Predictor
from recipes.medvlmoe.trained import load_run

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
TEXT = "71-year-old man with fever"


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor(load_run(trained_run))


def bars(answer):
    """Titles and numbers of the first table."""
    table = answer[answer.index("<table") : answer.index("</table>")]
    return re.findall(r"<th[^>]*>([^<]*)</th>.*?(\d\.\d+)</td>", table, re.DOTALL)


def test_a_text_alone_is_answered_as_predict_does(predictor, trained_run):
    answer = predictor.answer(None, TEXT)
    assert "Without an image: the model&#39;s stand-in for one is used." in answer
    assert "It was hardly trained (--drop-image 0), so do not rely on this." in answer
    assert "<img" not in answer
    with pytest.warns(UserWarning, match="drop-image"):
        table = predict.main(trained_run, text=TEXT)
    expected = [(name, f"{table[f'calibrated:{name}'][0]:.2f}") for name in predictor.trained.classes]
    assert [(name, f"{float(value):.2f}") for name, value in bars(answer)] == expected
    assert bars(predictor.answer(None, "cough, since a fall")) != bars(answer)


def test_a_run_that_dropped_images_in_training_gives_no_warning(predictor):
    trained = predictor.trained
    settings = replace(trained.config, train=replace(trained.config.train, drop_image=0.2))
    answer = Predictor(replace(trained, config=settings)).answer(None, TEXT)
    assert "hardly trained" not in answer
    assert "stand-in for one" in answer


def test_an_image_alone_and_nothing(predictor):
    answer = predictor.answer(IMAGE, " ")
    assert "Without a text: the model&#39;s stand-in for one is used." in answer
    assert answer.count("<img") >= 2
    assert bars(answer) != bars(predictor.answer(IMAGE, TEXT))
    assert "Choose an example, or upload an image." in predictor.answer(None, None)


def test_a_run_that_reads_no_text_says_so(image_run):
    predictor = Predictor(load_run(image_run))
    assert "The run was trained without texts: the text is not read." in predictor.answer(IMAGE, TEXT)
    nothing = predictor.answer(None, TEXT)
    assert "The run was trained without texts: the text is not read. Choose an example, or upload an image." in nothing
